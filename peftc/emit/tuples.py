"""The source's own tuples: what several calls are handed stands once, under the variable that the source had for it."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from peftc.graph.branches import Guard, inputs
from peftc.graph.dataflow import example


@dataclass(frozen=True, eq=False)
class Use:
    """A call that is handed a tuple at a position: whole, or item by item."""

    node: fx.Node
    place: int
    whole: bool


def packed(items: tuple[Any, ...]) -> tuple[Any, ...]:
    """A tuple as a value of its own.  Only printed, never run."""
    raise AssertionError("packed() is printed, not run")


def with_tuples(graph: fx.Graph) -> None:
    """Let calls that are handed the same tuple read it from one variable."""
    found: dict[tuple[str, tuple[Any, ...]], list[Use]] = {}
    for node in graph.nodes:
        for name, items, use in _handed(node):
            found.setdefault((name, items), []).append(use)
    for (name, items), uses in found.items():
        if len(uses) > 1:
            _share(graph, name, items, uses)


def _handed(node: fx.Node) -> Iterator[tuple[str, tuple[Any, ...], Use]]:
    for place, (name, count) in node.meta.get("tuples", {}).items():
        given = node.args[place] if place < len(node.args) else None
        whole = isinstance(given, tuple)
        items = given if isinstance(given, tuple) else node.args[place : place + count]
        if len(items) == count and inputs(items):
            yield name, items, Use(node, place, whole)


def _share(graph: fx.Graph, name: str, items: tuple[Any, ...], uses: Sequence[Use]) -> None:
    guard, *others = (use.node.meta.get("guard", ()) for use in uses)
    last = max(inputs(items))
    if any(other[: len(guard)] != guard for other in others):
        return
    behind = last if last.meta.get("guard", ()) == guard else _before(uses[0].node, guard, last)
    while behind.next.op == "placeholder" or behind.next.target is operator.getitem:
        behind = behind.next
    with graph.inserting_after(behind):
        whole = graph.call_function(packed, (items,))
    values = tuple(map(example, items))
    whole.meta.update(names=[name], guard=guard, value=(values, values))
    for use in uses:
        _replace(graph, use, whole, len(items))


def _before(node: fx.Node, guard: tuple[Guard, ...], stop: fx.Node) -> fx.Node:
    """The node in front of the statements that stand under one guard together with this one."""
    while node.prev is not stop and node.prev.meta.get("guard", ()) == guard:
        node = node.prev
    return node.prev


def _replace(graph: fx.Graph, use: Use, whole: fx.Node, count: int) -> None:
    given: list[Any] = list(use.node.args)
    if use.whole:
        given[use.place] = whole
    else:
        with graph.inserting_before(use.node):
            parts = [graph.call_function(operator.getitem, (whole, i)) for i in range(count)]
        for i, part in enumerate(parts):
            part.meta.update(value=(whole.meta["value"][0][i],) * 2, guard=use.node.meta.get("guard", ()))
        given[use.place : use.place + count] = parts
    use.node.args = tuple(given)
