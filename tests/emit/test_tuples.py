"""The source's own tuples stand once."""

from __future__ import annotations

import operator

import torch
from torch import fx, nn

from peftc.emit.statements import forward
from peftc.graph.branches import Guard
from tests.emit.test_names import Unit
from tests.trace.seen import seen


class Viewing(nn.Module):
    """Two views of one shape, whole and item by item, and one that stands alone."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        shape = (batch, -1, 4)
        other = (length, -1)
        return (x + 1).view(shape), (x + 2).view(*shape), (x + 3).reshape(other)  # type: ignore[return-value]


def test_a_shape_of_several_views_is_a_variable() -> None:
    assert forward(Viewing, seen(Viewing(), 4).graph, {}).lines[1:] == (
        "    batch, length, _ = x.shape",
        "    shape = (batch, -1, 4)",
        "    return (x + 1).view(shape), (x + 2).view(*shape), (x + 3).reshape((length, -1))",
    )


def test_a_shape_of_both_sides_of_a_branch_stands_in_each_call() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.placeholder("mask")
    size = graph.call_method("size", (x, 0))
    size.meta.update(names=["size"], value=(2, 3))
    for side in (True, False):
        view = graph.call_method("fill_", (graph.call_method("view", (x, (size, -1))), 0))
        view.meta["guard"] = view.args[0].meta["guard"] = (Guard("mask is not None", side),)  # type: ignore[union-attr]
        view.args[0].meta["tuples"] = {1: ("shape", 2)}  # type: ignore[union-attr]
    graph.output(x)
    assert forward(Unit, graph, {}).lines[1:] == (
        "    size = x.size(0)",
        "    if mask is not None:",
        "        x.view((size, -1)).fill_(0)",
        "    else:",
        "        x.view((size, -1)).fill_(0)",
        "    return x",
    )


def test_a_tuple_in_a_tuple_is_read_item_by_item() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    x.meta["value"] = (((1, 2), 3),) * 2
    places, size = (graph.call_function(operator.getitem, (x, i)) for i in range(2))
    places.meta.update(names=["places"], value=((1, 2),) * 2)
    first, second = (graph.call_function(operator.getitem, (places, i)) for i in range(2))
    graph.output(graph.call_function(torch.cat, ([first, second, size],)))
    assert forward(Unit, graph, {}).lines[1:] == (
        "    places, part = x",
        "    return torch.cat([*places, part])",
    )
