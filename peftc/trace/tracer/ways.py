"""The branches of a trace that its examples leave open, and the ways through them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Iterable, Iterator

import torch
from torch import fx

from peftc.graph.branches import assume, enter, leave
from peftc.graph.dataflow import example
from peftc.trace.tracer.constants import kind_of_device

ORDERS = (operator.lt, operator.le, operator.gt, operator.ge)
EQUALS = (operator.eq, operator.ne)
MOST = 4  # branches of which every combination is traced; beyond that, checks
Against = frozenset[Hashable]


def decisions(graph: fx.Graph, open_: Callable[[fx.Node], bool]) -> list[Hashable]:
    """The keys of the branches of a trace whose condition the examples leave open."""
    return [check.meta["key"] for check, asked in _branches(graph) if open_(asked)]


def _branches(graph: fx.Graph) -> Iterator[tuple[fx.Node, fx.Node]]:
    """(check, condition) of each branch on something that a node gives."""
    yield from ((n, n.args[0]) for n in graph.nodes if n.target is assume and isinstance(n.args[0], fx.Node))


def asks_kind(condition: fx.Node) -> bool:
    """Whether a condition asks for a dtype or a device, or whether a number that a cache counts is in a tensor."""
    return any(_is_dtype(a) or kind_of_device(a) for a in condition.args) or _asks_tensor(condition)


def flags(graph: fx.Graph) -> list[Hashable]:
    """The keys of the flags that a forward is given and branches on: the examples' calls may all give the same one."""
    given = [n for _, n in _branches(graph) if n.op == "placeholder" and isinstance(n.meta["value"][0], bool)]
    return list(dict.fromkeys(n.meta["key"] for n in given))


def asks_value(condition: fx.Node) -> bool:
    """Whether a condition is a number in a tensor, which no example has."""
    value = condition.meta["value"][0]
    return isinstance(value, torch.Tensor) and value.is_meta


def compared(graph: fx.Graph) -> dict[Hashable, bool]:
    """What a trace decided at each branch on which of two sizes is larger, or whether one divides another.

    All examples may be on one side.
    """
    return {check.meta["key"]: bool(check.args[1]) for check, asked in _branches(graph) if _is_order(asked)}


def outcomes(graph: fx.Graph) -> dict[Hashable, bool]:
    """What a trace decided at each branch."""
    return {n.meta["key"]: bool(n.args[1]) for n in graph.nodes if n.target is assume}


def inlined(graphs: Iterable[fx.Graph]) -> dict[str, set[tuple[Hashable, ...]]]:
    """path -> what each of the traces does inside that module or method."""
    found: dict[str, set[tuple[Hashable, ...]]] = {}
    for graph in graphs:
        for mark in (n for n in graph.nodes if n.target is enter):
            keys, node = [], mark.next
            while node.op != "output" and not (node.target is leave and node.args[0] == mark.args[0]):
                keys.append((node.meta["key"], node.target is assume and node.args[1]))
                node = node.next
            found.setdefault(str(mark.args[0]), set()).add(tuple(keys))
    return found


def further_ways(keys: list[Hashable], way: Against) -> Iterator[Against]:
    """The ways that go against one more of these branches, behind those of this way: so each combination comes once."""
    last = max([-1, *(keys.index(key) for key in way if key in keys)])
    for key in keys[last + 1 :]:
        yield way | {key}


def _is_order(condition: fx.Node) -> bool:
    sizes = condition.all_input_nodes
    divides = condition.target in EQUALS and any(n.target is operator.mod for n in sizes)
    return (condition.target in ORDERS or divides) and bool(sizes) and all(map(is_number, sizes))


def is_number(node: fx.Node) -> bool:
    """Whether a node gives an integer, or a bool."""
    return isinstance(example(node), int)


def _asks_tensor(condition: fx.Node) -> bool:
    if condition.target is not isinstance or condition.args[1] is not torch.Tensor:
        return False
    (counted,) = condition.all_input_nodes
    return type(counted.meta["value"][0]) is int


def _is_dtype(value: object) -> bool:
    return isinstance(value.meta["value"][0] if isinstance(value, fx.Node) else value, torch.dtype)
