"""The branches of a trace that its examples leave open, and the ways through them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator

import torch
from torch import fx

from peftc.graph.branches import assume

MOST = 4  # branches of which every combination is traced; beyond that, checks
Against = frozenset[Hashable]


def decisions(graph: fx.Graph, open_: Callable[[fx.Node], bool]) -> list[Hashable]:
    """The keys of the branches of a trace whose condition the examples leave open."""
    asked = [n for n in graph.nodes if n.target is assume and isinstance(n.args[0], fx.Node)]
    return [n.meta["key"] for n in asked if open_(n.args[0])]


def asks_kind(condition: fx.Node) -> bool:
    """Whether a condition asks for a dtype, or whether a number that a cache counts is in a tensor."""
    return any(_is_dtype(a) for a in condition.args) or _asks_tensor(condition)


def asks_value(condition: fx.Node) -> bool:
    """Whether a condition is a number in a tensor, which no example has."""
    value = condition.meta["value"][0]
    return isinstance(value, torch.Tensor) and value.is_meta


def further_ways(keys: list[Hashable], way: Against) -> Iterator[Against]:
    """A way that goes against one more of these branches, among those after its own."""
    last = max([-1, *(keys.index(key) for key in way if key in keys)])
    for key in keys[last + 1 :]:
        yield way | {key}


def _asks_tensor(condition: fx.Node) -> bool:
    if condition.target is not isinstance or condition.args[1] is not torch.Tensor:
        return False
    (counted,) = condition.all_input_nodes
    return type(counted.meta["value"][0]) is int


def _is_dtype(value: object) -> bool:
    return isinstance(value.meta["value"][0] if isinstance(value, fx.Node) else value, torch.dtype)
