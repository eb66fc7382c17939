"""Nodes that compute the same on the meta device run once; what works in place, or keeps a state, runs each time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import DynamicCache

from peftc.trace.record.memo import Held, Remembered
from peftc.trace.tracer.tracer import Tracer
from peftc.trace.tracer.values import Argument


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.runs = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.runs += 1
        return x.flatten(1)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Counting()

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        added: torch.Tensor = self.inner(x) + self.inner(y)
        return added


def example(*sizes: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty(2, *sizes, device="meta"), torch.empty(3, *sizes, device="meta")


@pytest.mark.parametrize(("other", "runs"), [((5, 4), 2), ((4, 5), 4)])
def test_equal_nodes_run_once_at_each_point(other: tuple[int, int], runs: int) -> None:
    unit = Twice()
    tracer = Tracer(unit, frozenset())
    given = [tracer._placeholder(Argument(n, None, example(*s))) for n, s in (("x", (5, 4)), ("y", other))]
    results = [tracer.create_proxy("call_module", "inner", (value,), {}) for value in given]
    assert unit.inner.runs == runs
    assert [tuple(point.shape) for r in results for point in r.points] == [(2, 20), (3, 20)] * 2
    assert results[0].points[0] is not results[1].points[0]


NOTHING: Held = ({}, {})


def made(target: Any, *values: Any) -> int:
    """How often a node's two points are computed when it is made twice on these values."""
    computed: list[int] = []
    memory = Remembered()
    tracer = Tracer(nn.Module(), frozenset())
    nodes = tuple(tracer._placeholder(Argument(f"v{i}", None, points)).node for i, points in enumerate(values))

    def compute(held: Held) -> tuple[Any, Any]:
        computed.append(1)
        first, second = (target(*(n.meta["value"][p] for n in nodes)) for p in (0, 1))
        return first, second

    for _ in range(2):
        memory.points("call_function", target, nodes, {}, NOTHING, compute)
    return len(computed)


def filled(length: int) -> DynamicCache:
    cache = DynamicCache()
    cache.update(torch.empty(2, 1, length, 4, device="meta"), torch.empty(2, 1, length, 4, device="meta"), 0)
    return cache


def keys(cache: DynamicCache) -> torch.Tensor:
    layer: Any = cache.layers[0]
    doubled: torch.Tensor = layer.keys * 2
    return doubled


def test_what_is_computed_each_time() -> None:
    assert made(torch.add, example(4), example(4)) == 1
    assert made(torch.Tensor.relu_, example(4)) == 1  # in place, which changes no shape
    assert made(torch.Tensor.t_, example(4)) == 2  # in place, the shape too
    assert made(torch.Tensor.dim, example(4)) == 2  # no tensor
    assert made(torch.relu, (torch.ones(2), torch.ones(3))) == 2  # real values
    assert made(lambda f, x: f(x), (torch.relu, torch.relu), example(4)) == 2  # a function


def test_what_is_returned_as_it_was_given_is_what_is_given_now() -> None:
    tracer, memory = Tracer(nn.Module(), frozenset()), Remembered()
    for _ in range(2):
        node = tracer._placeholder(Argument("x", None, example(4))).node
        points, _ = memory.points("call_function", "kept", (node,), {}, NOTHING, lambda held, n=node: n.meta["value"])  # type: ignore[misc]
        assert all(one is other for one, other in zip(points, node.meta["value"], strict=True))


def test_a_cache_is_what_its_layers_hold() -> None:
    tracer, memory = Tracer(nn.Module(), frozenset()), Remembered()
    short, long = ((filled(n), filled(n)) for n in (3, 7))
    lengths = []
    for caches in (short, long, short):
        node = tracer._placeholder(Argument("cache", None, caches)).node
        points, _ = memory.points("call_function", keys, (node,), {}, NOTHING, lambda held, c=caches: (*map(keys, c),))  # type: ignore[misc,arg-type]
        lengths.append(points[0].shape[2])
    assert lengths == [3, 7, 3]


class Grown:
    """Caches at both points, and perhaps their first layers, as the nodes of one trace hold them."""

    def __init__(self, parts: bool) -> None:
        tracer, caches = Tracer(nn.Module(), frozenset()), (filled(3), filled(3))
        self.nodes = [tracer._placeholder(Argument("cache", None, caches)).node]
        first, second = ((cache if parts else filled(3)).layers[0] for cache in caches)
        self.nodes.append(tracer._placeholder(Argument("layer", None, (first, second))).node)
        self.computed = 0

    def grow(self, memory: Remembered) -> list[int]:
        """How many keys the cache and the layer hold after one more was written into the cache."""
        first, second = ({node: node.meta["value"][point] for node in self.nodes} for point in (0, 1))
        _, (held, _) = memory.points("call_method", "update", (self.nodes[0],), {}, (first, second), self._written)
        assert self.nodes[1].meta["value"][0].keys.shape[2] == 3
        cache, layer = (held[node] for node in self.nodes)
        return [cache.layers[0].keys.shape[2], layer.keys.shape[2]]

    def _written(self, held: Held) -> tuple[Any, Any]:
        self.computed += 1
        one = torch.empty(2, 1, 1, 4, device="meta")
        first, second = (own[self.nodes[0]].update(one, one, 0)[0] for own in held)
        return first, second


def test_what_is_left_of_a_cache_is_remembered_with_its_parts() -> None:
    memory = Remembered()
    whole, again, apart = Grown(parts=True), Grown(parts=True), Grown(parts=False)
    assert [grown.grow(memory) for grown in (whole, again, apart)] == [[4, 4], [4, 4], [4, 3]]
    assert [grown.computed for grown in (whole, again, apart)] == [1, 0, 1]
