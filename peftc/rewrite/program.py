"""The rewritten model: one body per distinct forward, what each adds, and the names that train."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from peftc.graph.sites import Unit
from peftc.methods.call import ModuleCall
from peftc.plan import PlacedShared, Plan

if TYPE_CHECKING:
    from torch import fx


@dataclass(frozen=True, eq=False)
class Addition:
    """An attribute that a body adds to its unit: the constructor call at each path (they may differ in arguments)."""

    name: str
    calls: Mapping[str, ModuleCall]


@dataclass(frozen=True, eq=False)
class Body:
    """One class of the artifact: a subclass of `unit.base` named `name`, whose forward is `graph`, used at `paths`.

    `towers` has those that its paths lie in, where the model has several; `layers` counts each path's layer in its own.
    `words` are what the class may be named for.  Bodies of one name are one class.
    """

    name: str
    unit: Unit
    graph: fx.Graph
    paths: tuple[str, ...]
    additions: tuple[Addition, ...]
    summary: tuple[str, ...]
    towers: tuple[str, ...] = ()
    layers: Mapping[str, int] = field(default_factory=dict)
    words: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Program:
    """Every body, what they share, and the exact names of the parameters that train."""

    plan: Plan
    bodies: tuple[Body, ...]
    shared: tuple[PlacedShared, ...]
    trained: tuple[str, ...]
