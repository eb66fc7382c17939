"""The pass that makes a body short: inlined modules that nothing changed become calls again."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import fx

from peftc.graph.branches import Guard, assume, choose, enter, inputs, leave, lookup
from peftc.graph.dataflow import example, is_move
from peftc.rewrite.passes import copied
from peftc.rewrite.program import Body, Program

IDLE = (getattr, operator.getitem, choose, lookup, enter, leave, torch.empty, torch.zeros, torch.ones)
COUNTS = ("_operator", "math")  # what they make of numbers is a number, and nothing else
FACTS = (int, float, torch.Size, torch.dtype, torch.device)


@dataclass(frozen=True)
class Simplify:
    """Folds untouched modules, and drops the markers and what is never read."""

    name: ClassVar[str] = "simplify"

    def run(self, program: Program) -> Program:
        return replace(program, bodies=tuple(_simplified(body) for body in program.bodies))


def _simplified(body: Body) -> Body:
    graph = _folded(body, body.graph, lambda _: True)
    _sink(graph, {addition.name for addition in body.additions})
    return replace(body, graph=graph)


def base_like(body: Body) -> fx.Graph:
    """The base's graph, with the modules folded that the body calls: what to compare the body with."""
    called = {str(node.target) for node in body.graph.nodes if node.op == "call_module"}
    return _folded(body, body.unit.graph, lambda path: path in called)


def _folded(body: Body, graph: fx.Graph, wanted: Callable[[str], bool]) -> fx.Graph:
    """A copy of a graph of a body's unit: untouched modules are calls where that is wanted, what is idle is gone."""
    graph, before = copied(graph), {node.name: node for node in body.unit.graph.nodes}
    for extent in list(_extents(graph)):
        if wanted(extent.path) and extent.start.name in {n.name for n in graph.nodes}:
            _fold(graph, extent, before)
    without_repeats(graph)
    without_idle(graph)
    return graph


@dataclass(frozen=True, eq=False)
class Extent:
    """An inlined module: its markers, and the nodes between them."""

    path: str
    start: fx.Node
    end: fx.Node
    inside: tuple[fx.Node, ...]


def _extents(graph: fx.Graph) -> Iterator[Extent]:
    """Every inlined module, outer ones first."""
    nodes = list(graph.nodes)
    for position, node in enumerate(nodes):
        if node.target is not enter:
            continue
        path = str(node.args[0])
        ends = [i for i in range(position, len(nodes)) if nodes[i].target is leave and nodes[i].args[0] == path]
        if ends:
            yield Extent(path, node, nodes[ends[0]], tuple(nodes[position + 1 : ends[0]]))


def _fold(graph: fx.Graph, extent: Extent, before: dict[str, fx.Node]) -> None:
    """Put the module's call back, where nothing inside changed and nothing but its result is used outside.

    One that only hands its input back, and does nothing else, is no call.  Nor is one that hands its input back where a
    check holds: elsewhere it may hand back something else, which nobody would read.
    """
    replaced = _replaced(before[extent.start.name].args[1:], extent.start.args[1:])
    if not all(_unchanged(node, before, replaced) for node in extent.inside):
        return
    result = before[extent.end.name].args[1]
    names = {n.name for n in extent.inside}
    given = [n.name for n in inputs(result)]
    outside = [n for n in extent.inside if any(u.name not in names and u is not extent.end for u in n.users)]
    if not outside and all(map(_is_idle, extent.inside)):
        return
    if any(n.target is assume for n in extent.inside) and not names.issuperset(given):
        return
    items = list(result) if isinstance(result, (tuple, list)) else [result]
    if any(n.name not in given for n in outside) or not all(i is None or isinstance(i, fx.Node) for i in items):
        return
    with graph.inserting_before(extent.start):
        _, args, kwargs = extent.start.args
        assert isinstance(args, tuple) and isinstance(kwargs, dict)
        call = graph.call_module(extent.path, args, kwargs)
    _take_over(graph, call, extent, result, names)
    for node in (extent.end, *reversed(extent.inside), extent.start):
        graph.erase_node(node)


def _take_over(graph: fx.Graph, call: fx.Node, extent: Extent, result: Any, inside: set[str]) -> None:
    """Let every reader outside read the call instead of what the inlined code made."""
    here = {n.name: n for n in extent.inside}
    call.meta.update(guard=extent.start.meta.get("guard", ()), names=[], scope=())
    if isinstance(result, fx.Node):
        call.meta["value"] = result.meta["value"]
        if result.name in here:
            made = here[result.name].meta
            call.meta.update(names=list(made.get("names", ())), stored=made.get("stored"), key=made.get("key"))
            _redirect(here[result.name], call, inside, extent)
        return
    call.meta["value"] = tuple(tuple(_value(item, i) for item in result) for i in range(2))
    for index, item in enumerate(result):
        if item is None or item.name not in here:
            continue
        with graph.inserting_before(extent.start):
            part = graph.call_function(operator.getitem, (call, index))
        part.meta.update(here[item.name].meta)
        part.meta["guard"] = call.meta["guard"]
        _redirect(here[item.name], part, inside, extent)


def _redirect(old: fx.Node, new: fx.Node, inside: set[str], extent: Extent) -> None:
    old.replace_all_uses_with(new, delete_user_cb=lambda u: u.name not in inside and u is not extent.end)


def _value(item: fx.Node | None, point: int) -> Any:
    return None if item is None else item.meta["value"][point]


def _replaced(before: Any, after: Any) -> dict[str, str]:
    """How the inputs of an inlined call changed: old name -> new name."""
    return {b.name: a.name for b, a in zip(inputs(before), inputs(after), strict=True)}


def _unchanged(node: fx.Node, before: dict[str, fx.Node], replaced: dict[str, str]) -> bool:
    old = before.get(node.name)
    if old is None or node.op != old.op or (node.target is not old.target and node.target != old.target):
        return False
    wanted = [replaced.get(n.name, n.name) for n in inputs((old.args, old.kwargs))]
    return node.target is leave or wanted == [n.name for n in inputs((node.args, node.kwargs))]


def without_idle(graph: fx.Graph) -> None:
    """Drop the markers, and what has no effect and no reader."""
    asked: set[object] = set()
    for node in reversed(list(graph.nodes)):
        if not node.users and node not in asked and _is_idle(node):
            graph.erase_node(node)
        else:
            asked.update(guard.condition for guard in node.meta.get("guard", ()))


def without_repeats(graph: fx.Graph) -> None:
    """Drop each check that an earlier one has made, there or around it."""
    made: dict[object, tuple[Guard, ...]] = {}
    for node in list(graph.nodes):
        if node.target is not assume:
            continue
        condition, outcome, _ = node.args
        asked = (condition.target, condition.args) if isinstance(condition, fx.Node) and condition.args else condition
        guard = node.meta.get("guard", ())
        before = made.setdefault((asked, outcome), guard)
        if before is not guard and guard[: len(before)] == before:
            graph.erase_node(node)


def _is_idle(node: fx.Node) -> bool:
    """Whether a node does nothing for who does not read it: a marker, a view of a tensor, a new one, a question."""
    if node.target in IDLE or _is_question(node):
        return True
    of_tensor = bool(node.args) and isinstance(example(node.args[0]), torch.Tensor)
    if of_tensor and (is_move(node) or node.target == "clone"):
        return True
    counts = getattr(node.target, "__module__", "") in COUNTS or (node.op == "call_method" and of_tensor)
    return counts and isinstance(example(node), FACTS)


def _is_question(node: fx.Node) -> bool:
    """A question to a cache whose answer is a number, in a tensor perhaps; one about a value's type."""
    asked, answer = node.op == "call_method" and str(node.target).startswith("get"), node.meta.get("value", ("",))[0]
    counted = isinstance(answer, torch.Tensor) and answer.dim() == 0
    return node.target is isinstance or (asked and (counted or isinstance(answer, int | None)))


def _sink(graph: fx.Graph, additions: set[str]) -> None:
    """Move each gate, or whatever else is added, down to the line of its first reader."""
    for node in reversed(list(graph.nodes)):
        if node.op != "call_module" or node.target not in additions or not node.users:
            continue
        order = {n: i for i, n in enumerate(graph.nodes)}
        first = min(node.users, key=lambda n: order[n])
        own, inner = node.meta.get("guard", ()), first.meta.get("guard", ())
        if inner[: len(own)] != own:
            continue
        if inner != own:
            _ahead(first, own, node).prepend(node)
            continue
        line = _line(first, node)
        (line if order[line] <= order[first] else first).prepend(node)


def _ahead(reader: fx.Node, guard: tuple[Guard, ...], stop: fx.Node) -> fx.Node:
    """The first node of the branch that a reader stands in, as seen from under a guard, and of what decides it."""
    deciding: set[object] = {own.condition for own in reader.meta.get("guard", ())}
    while reader.prev is not stop:
        before = reader.prev
        decides = before in deciding or (before.users and deciding.issuperset(before.users))
        if len(before.meta.get("guard", ())) <= len(guard) and not decides:
            break
        deciding |= {before} if decides else set()
        reader = before
    return reader


def _line(reader: fx.Node, stop: fx.Node) -> fx.Node:
    """The first node of the statement that a reader will be printed in."""
    while len(reader.users) == 1 and not (reader.meta.get("names") or reader.meta.get("comment")):
        reader = next(iter(reader.users))
    line, start = {reader}, reader
    while start.prev is not stop and start.prev.op != "placeholder" and start.prev.users:
        if not all(user in line for user in start.prev.users) or start.prev.meta.get("names"):
            break
        start = start.prev
        line.add(start)
    return start
