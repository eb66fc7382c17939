"""The pass that lets every placement rewrite its unit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import fx

from peftc.graph.editor import Editor, Gating
from peftc.graph.sites import Attention, Projection, Site, Trace
from peftc.methods.call import ModuleCall
from peftc.plan import PlacedGate, PlacedShared, Placement, Plan
from peftc.rewrite.passes import copied
from peftc.rewrite.program import Addition, Body, Program
from peftc.rewrite.share import named


@dataclass(frozen=True)
class Attach:
    """Edits each unit for its placements; units whose code becomes the same share a body."""

    name: ClassVar[str] = "attach"

    def run(self, program: Program) -> Program:
        found: list[Body] = []
        for body in program.bodies:
            groups: dict[Any, list[Edited]] = {}
            for path in body.paths:
                edited = _edited(program.plan, body, path)
                groups.setdefault(edited.shape(), []).append(edited)
            found += [_joined(body, group, program.plan.trace) for group in groups.values()]
        return replace(program, bodies=named([[body] for body in found]))


@dataclass(frozen=True, eq=False)
class Edited:
    """One unit instance after its placements: the graph, and the calls that build what it adds."""

    path: str
    graph: fx.Graph
    additions: Mapping[str, ModuleCall]
    placements: tuple[Placement, ...]

    def shape(self) -> tuple[Any, ...]:
        """What must be equal for two instances to share a class: the code, and which modules it calls."""
        code = tuple((n.op, str(n.target), str(n.args), str(n.kwargs), n.meta.get("comment")) for n in self.graph.nodes)
        calls = tuple((n, c.name, tuple(k for k, _ in c.arguments)) for n, c in self.additions.items())
        return code, calls


def _edited(plan: Plan, body: Body, path: str) -> Edited:
    graph = copied(body.graph)
    editor = Editor(graph)
    placements = tuple(p for p in plan.placements if p.path == path)
    shared = {id(m): (s, i) for s in plan.shared for i, m in enumerate(s.members)}
    gates = {id(m): g for g in plan.gates for m in g.members}
    calls: dict[str, ModuleCall] = {}
    for placement in placements:
        gating = _gating(placement, gates.get(id(placement)))
        for site in _calls(placement.site):
            with editor.at(site, placement.name, placement.method.method, gating):
                placement.method.rewrite(site, editor)
        calls |= {n: c for n, c in editor.additions.items() if n not in calls}
        if id(placement) in shared:
            calls[placement.name] = _sliced(calls[placement.name], *shared[id(placement)])
    return Edited(path, graph, calls, placements)


def _calls(site: Site) -> Iterator[Site]:
    """The site at every call of its module, or in every branch."""
    yield site
    if isinstance(site, Attention):
        yield from site.others
    if isinstance(site, Projection):
        yield from (replace(site, node=node, output=node, again=()) for node in site.again)


def _gating(placement: Placement, gate: PlacedGate | None) -> Gating | None:
    if gate is None or placement.method.gate is None:
        return None
    entries = list(dict.fromkeys(member.entry for member in gate.members))
    member = entries.index(placement.entry) if placement.method.gate.kind == "central" else None
    return Gating(gate.name, gate.call, placement.method.gate.reads, member)


def _sliced(call: ModuleCall, shared: PlacedShared, index: int) -> ModuleCall:
    return ModuleCall(call.name, (("trunk", shared.name), ("index", index), *call.arguments))


def _joined(body: Body, group: Sequence[Edited], trace: Trace) -> Body:
    first = group[0]
    additions = tuple(Addition(n, {e.path: e.additions[n] for e in group}) for n in first.additions)
    paths = tuple(edited.path for edited in group)
    layers = {path: layer.index for layer in trace.layers for path, _ in layer.units if path in paths}
    towers = _towers(trace, paths) if len(trace.towers()) > 1 else ()
    phrases, words = tuple(summary(first.placements)), _words(towers, first.placements)
    return Body(body.name, body.unit, first.graph, paths, additions, phrases, towers, layers, words)


def _words(towers: Sequence[str], placements: Sequence[Placement]) -> tuple[str, ...]:
    """What a body may be named for: its towers, whether it is all cross-attention, its methods."""
    cross = "Cross" if all(placement.site.name.startswith("cross.") for placement in placements) else ""
    methods = dict.fromkeys(placement.method.method for placement in placements)
    return "".join(map(_camel, towers)), cross, "".join(map(_camel, methods))


def _towers(trace: Trace, paths: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(layer.tower for layer in trace.layers for path, _ in layer.units if path in paths))


def summary(placements: Sequence[Placement]) -> Iterator[str]:
    """`lora on q and v, gated (sequence)`, one phrase per entry."""
    entries: dict[int, list[Placement]] = {}
    for placement in placements:
        entries.setdefault(placement.entry, []).append(placement)
    for members in entries.values():
        method = members[0].method
        names = list(dict.fromkeys(member.site.name for member in members))
        listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
        gate = f", gated ({method.gate.kind})" if method.gate else ""
        yield f"{method.method} on {listed}{gate}"


def _camel(text: str) -> str:
    return "".join(word.capitalize() for word in text.split("_"))
