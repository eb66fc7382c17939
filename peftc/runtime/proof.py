"""The numerical proof: what was emitted, run beside the base's own forward."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import torch

from peftc.emit.artifact import printed
from peftc.methods.call import ModuleCall
from peftc.rewrite.passes import copied
from peftc.rewrite.program import Addition, Body, Program
from peftc.rewrite.simplify import without_idle
from peftc.runtime.examples import recordings
from peftc.runtime.namespace import module_of
from peftc.runtime.shrunk import Shrunk, shrunk, size
from peftc.runtime.unit_run import Drawn, UnitRun, fused_parts, neutral_shared

LARGEST = 250_000_000


@dataclass(frozen=True)
class Proof:
    """What was shown, in sentences; `cases` counts the comparisons behind them."""

    lines: tuple[str, ...]
    cases: int


@torch.enable_grad()
def prove(program: Program, largest: int = LARGEST) -> Proof:
    """Raise a Defect unless the program keeps its promises; say what was shown.

    Without its placements every unit equals the base's forward bit for bit, gradients too; with those that claim it, it
    is the base at first, to 1e-5 where a part of a fused projection is changed, and bit for bit beside the same code
    with dense parts; behind a sum that the base changes in place both hold but for rounding.  Once its additions moved,
    every parameter that trains has a gradient, and no other does.  Those of the base that its own forward gives none at
    these inputs are excused, and named.
    A unit of more than `largest` parameters is run on a smaller config, where its graph has the same fingerprint.
    """
    if not program.bodies:
        return Proof(("no unit is rewritten",), 0)
    large = [body for body in program.bodies if size(program, body) > largest]
    smaller = shrunk(program, large, largest) if large else None
    shown = [*_shown(program, [b for b in program.bodies if b not in large]), *_of_large(large, smaller)]
    order = [body.name for body in program.bodies]
    shown.sort(key=lambda line: order.index(line.body))
    lines = dict.fromkeys(f"{line.body}: {line.text}" for line in shown)
    return Proof(tuple(lines), sum(line.cases for line in shown))


@dataclass(frozen=True)
class Line:
    """One sentence of the proof about a body, and how many comparisons stand behind it."""

    body: str
    text: str
    cases: int


def _of_large(large: Sequence[Body], smaller: Shrunk | None) -> Iterator[Line]:
    if smaller is None:
        yield from (Line(b.name, "not run: too large, and no smaller config has the same graph", 0) for b in large)
        return
    names = {body.name for body in large}
    yield from (Line(name, f"run at {smaller.sizes}, where its graph has the same fingerprint", 0) for name in names)
    yield from _shown(smaller.program, [b for b in smaller.program.bodies if b.name in names])


def _shown(program: Program, bodies: Sequence[Body]) -> Iterator[Line]:
    if not bodies:
        return
    bare, neutral, full = map(_emitted, (without_additions(program), _neutral(program), program))
    laid = _emitted(_laid(program)) if any(fused_parts(program, *body.paths) for body in bodies) else bare
    versions = (bare, laid, neutral, full)
    found, drawn = recordings(program.plan.trace), Drawn()
    for body in bodies:
        runs = [UnitRun.at(program, body, path, found, drawn, bare) for path in _distinct(program, body)]
        yield from _lines(body, runs, versions)


def _lines(body: Body, runs: Sequence[UnitRun], versions: Sequence[ModuleType]) -> Iterator[Line]:
    base, (bare, laid, neutral, full) = body.unit.base.__name__, versions
    if not all(run.calls for run in runs):
        fails = "by itself its own forward fails, or gives no finite number"
        left = fails if any(run.left for run in runs) else "no example input reaches it"
        yield Line(body.name, f"not run: {left}", 0)
        return
    equal, same = runs[0].equal(bare), sum(run.identity(neutral, laid) for run in runs)
    bits = "bit for bit" + (" but for rounding behind what it changes in place" if runs[0].in_place else "")
    yield Line(body.name, f"without additions equal to {base}, {bits}, gradients too{_limit(runs[0], equal)}", equal)
    if all(run.exact for run in runs):
        dense = ", with parts of fused projections laid out as sums are" if any(run.parts for run in runs) else ""
        yield Line(body.name, f"with additions equal to {base} at initialisation, {bits}{dense}", same)
    else:
        bar = "with a prefix of no keys, and the rest at initialisation, equal to"
        yield Line(body.name, f"{bar} {base} to 1e-5", same)
    reached, idle = zip(*(run.gradients(full) for run in runs), strict=True)
    but = f"; at these inputs not even in the base's own forward: {names}" if (names := _named(idle)) else ""
    yield Line(body.name, f"every parameter that trains has a gradient, no other has one{but}", sum(reached))


def _named(idle: Iterable[set[str]]) -> str:
    return ", ".join(sorted(set[str]().union(*idle)))


def _limit(run: UnitRun, compared: int) -> str:
    whole = len(run.calls) + run.left + sum(len(calls) for _, calls in run.chosen)
    why = "in which its own forward fails, or gives no finite number"
    return f"; {whole - compared} of {whole} runs left out, {why}" if compared < whole else ""


def _distinct(program: Program, body: Body) -> list[str]:
    """The first path of every size that a body is used with: of its unit, and of what it adds."""
    found: dict[Any, str] = {}
    for path in body.paths:
        module = program.plan.trace.model.get_submodule(path)
        shapes = tuple(tuple(p.shape) for p in module.parameters())
        calls = tuple(tuple(kv for kv in a.calls[path].arguments if kv[0] != "index") for a in body.additions)
        found.setdefault((shapes, calls), path)
    return list(found.values())


def without_additions(program: Program) -> Program:
    """The same units as the base has them, inlined, with nothing added; each is a class of its own."""
    bodies = []
    for position, body in enumerate(program.bodies):
        graph = copied(body.unit.graph)
        without_idle(graph)
        bodies.append(replace(body, name=f"{body.name}_{position}", graph=graph, additions=()))
    return replace(program, bodies=tuple(bodies), shared=(), trained=())


def _laid(program: Program) -> Program:
    """The same, where a part of a fused projection that is changed comes as the sum does: dense, not as a slice."""
    bare = without_additions(program)
    for body in bare.bodies:
        parts = fused_parts(program, *body.paths)
        for node in [n for n in body.graph.nodes if n.name in parts]:
            with body.graph.inserting_after(node):
                dense = body.graph.call_function(operator.mul, (node, 1))
            dense.meta.update(guard=node.meta.get("guard", ()), names=[])
            node.replace_all_uses_with(dense, delete_user_cb=lambda user, own=dense: user is not own)
    return bare


def _neutral(program: Program) -> Program:
    """The program with additions that change nothing: as they start, and prefixes of no keys."""
    methods = {(p.path, p.name): p.method for p in program.plan.placements}

    def call(path: str, name: str, given: ModuleCall) -> ModuleCall:
        method = methods.get((path, name))
        return method.neutral(given) if method else given

    def quiet(addition: Addition) -> Addition:
        return Addition(addition.name, {p: call(p, addition.name, c) for p, c in addition.calls.items()})

    bodies = [replace(b, additions=tuple(quiet(a) for a in b.additions)) for b in program.bodies]
    shared = [replace(s, module=replace(s.module, call=neutral_shared(s))) for s in program.shared]
    return replace(program, bodies=tuple(bodies), shared=tuple(shared))


def _emitted(program: Program) -> ModuleType:
    return module_of("proof", printed(program).text)
