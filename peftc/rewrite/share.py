"""The pass that names the classes: units whose code has become the same share one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import fx

from peftc.graph.branches import given
from peftc.graph.dataflow import example
from peftc.methods.call import ModuleCall
from peftc.rewrite.program import Body, Program
from peftc.spec.layers import number
from peftc.trace.tracer.fingerprint import spelled


@dataclass(frozen=True)
class Share:
    """Gives bodies of one code one name and one graph, whatever the modules that they call are made of."""

    name: ClassVar[str] = "share"

    def run(self, program: Program) -> Program:
        groups: dict[Any, list[Body]] = {}
        for body in program.bodies:
            groups.setdefault(_code(body), []).append(body)
        alike = [[replace(body, graph=group[0].graph) for body in group] for group in groups.values()]
        return replace(program, bodies=named(alike))


def named(groups: Sequence[Sequence[Body]]) -> tuple[Body, ...]:
    """Every body under the name of its group: that of its unit, with the words that tell several apart, or a number."""
    firsts = [group[0] for group in groups]
    return tuple(replace(b, name=_name(group[0], firsts)) for group in groups for b in group)


def _name(own: Body, firsts: Sequence[Body]) -> str:
    alike = [body for body in firsts if body.unit.name == own.unit.name]
    differing = [position for position in range(len(own.words)) if len({b.words[position] for b in alike}) > 1]
    names = [own.unit.name + "".join(body.words[position] for position in differing) for body in alike]
    name = names[alike.index(own)]
    number = [body for body, other in zip(alike, names, strict=True) if other == name].index(own) + 1
    return name if names.count(name) == 1 else numbered(name, number)


def numbered(name: str, number: int) -> str:
    """A class's name with a number behind it, apart from one that it ends in."""
    return f"{name}{'_' if name[-1].isdigit() else ''}{number}"


def _code(body: Body) -> object:
    """All that a class does, but for the values that its additions are called with.

    A class looks these up by the number of its path: no good where that counts stages, not layers.
    """
    order = {node: i for i, node in enumerate(body.graph.nodes)}
    rows = tuple((n.op, spelled((n.target, n.args, given(n)), order), _line(n, order)) for n in body.graph.nodes)
    staged = any(number(path) != layer for path, layer in body.layers.items())
    added = tuple((a.name, *sorted({_call(c, staged) for c in a.calls.values()})) for a in body.additions)
    return body.unit.name, body.unit.base, body.summary, body.towers, rows, added


def _call(call: ModuleCall, whole: bool) -> str:
    return repr(call if whole else (call.name, *dict(call.arguments)))


def _line(node: fx.Node, order: Mapping[fx.Node, int]) -> tuple[object, ...]:
    """What a node's line depends on beside its call and its names: condition, comment, and the kind of its value."""
    value, guards = example(node), node.meta.get("guard", ())
    condition = tuple((spelled(guard.condition, order), guard.branch) for guard in guards)
    size = len(value) if isinstance(value, (tuple, list)) else None
    return condition, node.meta.get("comment"), type(value), size
