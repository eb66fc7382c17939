"""Programs written by hand: a small base, bodies with printed forwards, what they add and train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx, nn

from peftc.emit.module import Heading, module_source
from peftc.emit.provenance import base_config
from peftc.emit.statements import Forward
from peftc.graph.sites import Trace, Unit
from peftc.methods.call import Cost, ModuleCall, SharedModule
from peftc.plan import PlacedShared, Plan
from peftc.rewrite.program import Addition, Body, Program
from peftc.spec.layers import number
from peftc.spec.schema import Base, Spec


@dataclass(frozen=True)
class Written:
    """A program with the forwards of its bodies, and the Auto classes of its model."""

    program: Program
    forwards: Mapping[str, Forward]
    autos: tuple[str, ...]

    @property
    def text(self) -> str:
        heading = Heading(("lora",), 1, 1)
        config = base_config(self.program.plan.trace.model)[1]
        return module_source(self.program, self.forwards, heading, self.autos, config).text


def body(
    base: type[nn.Module], name: str, paths: Sequence[str], additions: Mapping[str, Sequence[ModuleCall] | ModuleCall]
) -> Body:
    unit = Unit(base.__name__, base, fx.Graph(), (), tuple(paths))
    added = tuple(
        Addition(key, {p: call if isinstance(call, ModuleCall) else call[i] for i, p in enumerate(paths)})
        for key, call in additions.items()
    )
    layers = {path: n for path in paths if (n := number(path)) is not None}
    return Body(name, unit, fx.Graph(), tuple(paths), added, ("written by hand",), layers=layers)


def written(
    model: nn.Module,
    bodies: Mapping[str, tuple[Body, str]],
    autos: tuple[str, ...] = (),
    shared: Mapping[str, ModuleCall] | None = None,
    train: Sequence[str] = (),
    name: str = "by-hand",
) -> Written:
    """`bodies`: name -> (body, the text of its forward)."""
    trace = Trace(model, (), (), (), {}, ())
    spec = Spec(name=name, base=Base(config={"model_type": "bert"}), methods=(), seed=7)
    trunks = tuple(
        PlacedShared("encoder", key, SharedModule(call, Cost(0, 0)), ()) for key, call in (shared or {}).items()
    )
    plan = Plan(spec, trace, (), (), trunks, (), (), "plan-by-hand")
    program = Program(plan, tuple(b for b, _ in bodies.values()), trunks, _trained(bodies, shared or {}, train))
    return Written(program, {key: _forward(text) for key, (_, text) in bodies.items()}, autos)


def _trained(
    bodies: Mapping[str, tuple[Body, str]], shared: Mapping[str, ModuleCall], train: Sequence[str]
) -> tuple[str, ...]:
    from peftc import modules

    def names(path: str, call: ModuleCall) -> list[str]:
        values = {k: nn.Identity() if k == "trunk" else v for k, v in call.arguments}
        with torch.device("meta"):
            return [f"{path}.{n}" for n, _ in getattr(modules, call.name)(**values).named_parameters()]

    found = [n for key, call in shared.items() for n in names(key, call)]
    for one, _ in bodies.values():
        found += [n for a in one.additions for path, call in a.calls.items() for n in names(f"{path}.{a.name}", call)]
    return (*found, *train)


def _forward(text: str) -> Forward:
    functions = frozenset(name for name in ("added", "with_prefix") if f"{name}(" in text)
    needed = "ALL_ATTENTION_FUNCTIONS"
    imports = {needed: f"from transformers.modeling_utils import {needed}"} if needed in text else {}
    return Forward(tuple(text.strip("\n").splitlines()), functions, imports)
