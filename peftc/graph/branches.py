"""Graphs with branches: nodes under a guard, values chosen by a condition, and the extent of inlined modules."""

from __future__ import annotations

import keyword
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import fx


@dataclass(frozen=True)
class SelfReference:
    """The unit itself (path ""), or a module inside it, as an argument of a node."""

    path: str


def attribute(root: str, path: str) -> str:
    """`self.layers[0].norm`: a dotted path as attribute access."""
    text = root
    for part in filter(None, path.split(".")):
        if part.isdigit():
            text += f"[{part}]"
        elif part.isidentifier() and not keyword.iskeyword(part):
            text += f".{part}"
        else:
            text = f"getattr({text}, {part!r})"
    return text


class LiftedInt(int):
    """An integer attribute of a module, which remembers its source: `self.head_dim`."""

    source: str


class LiftedFloat(float):
    """A float attribute of a module, which remembers its source: `self.scaling`."""

    source: str


class LiftedStr(str):
    """A string attribute that is read again at run time, which remembers its source."""

    source: str


def given(node: fx.Node) -> dict[str, Any]:
    """The keyword arguments of a call; one that is None because an attribute was, as what reads that attribute."""
    keywords: dict[str, Any] = dict(node.kwargs)
    for name, source in node.meta.get("absent", {}).items():
        if keywords.get(name, ...) is None:
            keywords[name] = LiftedStr(source)
            keywords[name].source = source
    return keywords


@dataclass(frozen=True)
class Guard:
    """A node's `if`: the condition, as Python source or as the node that computes it, and the branch it stands in."""

    condition: str | fx.Node
    branch: bool


def moved(guards: tuple[Guard, ...], table: Mapping[fx.Node, fx.Node]) -> tuple[Guard, ...]:
    """The same guards in a copied graph, whose nodes the table gives."""
    return tuple(replace(g, condition=_moved(g.condition, table)) for g in guards)


def _moved(condition: str | fx.Node, table: Mapping[fx.Node, fx.Node]) -> str | fx.Node:
    return table[condition] if isinstance(condition, fx.Node) else condition


def inputs(value: Any) -> list[fx.Node]:
    """Every node in a value, as often as it stands there."""
    found: list[fx.Node] = []

    def note(node: fx.Node) -> fx.Node:
        found.append(node)
        return node

    fx.node.map_arg(value, note)
    return found


def lookup(implementation: str, default: Callable[..., Any], example: Callable[..., Any]) -> Callable[..., Any]:
    """The attention function that the config names; while tracing, a stand-in with the same output shapes."""
    return example


def base_forward(*args: Any, **kwargs: Any) -> Any:
    """The base class's own forward: printed as `super().forward(...)`.  Never run."""
    raise AssertionError("base_forward() is printed, not run")


def choose(condition: Any, if_true: Any, if_false: Any) -> Any:
    """A value that differs by branch.  Only printed, never run."""
    raise AssertionError(f"choose({condition}) is printed, not run")


def is_flag(node: fx.Node) -> bool:
    """Whether a choice is its own condition: True where that holds, else False."""
    return node.target is choose and isinstance(node.args[0], str) and node.args[1:] == (True, False)


def assume(condition: Any, outcome: bool, message: str) -> None:
    """What tracing took for granted, as a value or as Python source: printed as a check that raises.  Never run."""
    raise AssertionError("assume() is printed, not run")


def enter(path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """The start of an inlined module: the call that was inlined."""


def leave(path: str, result: Any) -> None:
    """The end of an inlined module: what the call returned."""


def end_of(node: fx.Node) -> fx.Node:
    """The end of the inlined modules whose result a node is, or the node: what only reads it stands behind."""
    end = node
    while end.next.target is leave and node in end.next.all_input_nodes:
        end = end.next
    return end
