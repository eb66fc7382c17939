"""What values are called that the source has no name for."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
from torch import fx, nn

from peftc.emit.hints import fallback
from peftc.emit.statements import forward
from peftc.graph.branches import Guard, choose
from peftc.graph.editor import Editor
from peftc.graph.sites import Projection
from peftc.methods.ia3 import IA3
from peftc.trace.tracer.frames import _stores


class Unit(nn.Module):
    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        return x


def made(node: fx.Node, *shape: int, **meta: Any) -> fx.Node:
    node.meta.update(value=(torch.zeros(shape), torch.zeros(shape)), **meta)
    return node


def test_no_variable_is_a_number() -> None:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.parts(x)
            return found

    graph = fx.Tracer().trace(Listed())
    editor, site = Editor(graph), Projection("ffn_down", "parts.2", "parts_2", "parts_2", 12, 8)
    with editor.at(site, "ffn_down_ia3", "ia3"):
        IA3().rewrite(site, editor)
    assert {fallback(node) for node in graph.nodes if node.op == "call_module"} == {"parts"}


def test_a_value_is_called_what_it_becomes_or_what_it_was() -> None:
    graph = fx.Graph()
    x = made(graph.placeholder("x"), 2, 3, 8)
    q = made(graph.call_module("q_proj", (x,)), 2, 3, 8)
    apart = made(graph.call_method("unflatten", (q, -1, (2, 4))), 2, 3, 2, 4)
    heads = made(graph.call_method("transpose", (apart, 1, 2)), 2, 2, 3, 4, names=["query_states"])
    states = made(graph.call_module("mlp", (x,)), 2, 3, 8, names=["states"])
    dropped = made(graph.call_module("dropout", (states,)), 2, 3, 8)
    total = graph.call_function(operator.add, (dropped, dropped))
    graph.output((heads, heads, total))
    q.meta["comment"] = "lora on q"
    assert forward(Unit, graph, {}).lines[1:] == (
        "    query_states = self.q_proj(x)  # lora on q",
        "    query_states = query_states.unflatten(-1, (2, 4)).transpose(1, 2)",
        "    states = self.mlp(x)",
        "    states = self.dropout(states)",
        "    return query_states, query_states, states + states",
    )


def test_each_side_of_a_branch_may_use_a_name_on_its_way() -> None:
    """attended = dropout(softmax(x)) where a mask is given, else dropout(relu(x)): two lines on each side."""
    graph = fx.Graph()
    x = made(graph.placeholder("x"), 2, 8)
    graph.placeholder("mask")
    sides = []
    for side, function in ((True, "softmax"), (False, "relu")):
        guard = {"guard": (Guard("mask is not None", side),), "names": ["attended"]}
        first = made(graph.call_module(function, (x,)), 2, 8, **guard)
        sides.append(made(graph.call_module("dropout", (first,)), 2, 8, **guard))
    graph.output(made(graph.call_function(choose, ("mask is not None", *sides)), 2, 8, names=["attended"]))
    assert forward(Unit, graph, {}).lines[1:] == (
        "    if mask is not None:",
        "        attended = self.softmax(x)",
        "        attended = self.dropout(attended)",
        "    else:",
        "        attended = self.relu(x)",
        "        attended = self.dropout(attended)",
        "    return attended",
    )


def test_values_of_which_no_run_makes_both_have_one_name() -> None:
    """Each is made on one side of a branch and read on that side of a later one, with other code between."""
    graph = fx.Graph()
    x = made(graph.placeholder("x"), 2, 8)
    graph.placeholder("mask")
    true, false = ((Guard("mask is not None", side),) for side in (True, False))
    kept = made(graph.call_module("kept", (x,)), 2, 8, guard=true, names=["keys"])
    x = made(graph.call_module("first", (x,)), 2, 8, names=["x"])
    new = made(graph.call_module("new", (x,)), 2, 8, guard=false, names=["keys"])
    x = made(graph.call_module("second", (x,)), 2, 8, names=["x"])
    new = made(graph.call_module("changed", (new, x)), 2, 8, guard=false, names=["keys"])
    keys = made(graph.call_function(choose, ("mask is not None", kept, new)), 2, 8, names=["keys"])
    graph.output((keys, x))
    assert forward(Unit, graph, {}).lines[1:] == (
        "    if mask is not None:",
        "        keys = self.kept(x)",
        "    x = self.first(x)",
        "    if mask is None:",
        "        keys = self.new(x)",
        "    x = self.second(x)",
        "    if mask is None:",
        "        keys = self.changed(keys, x)",
        "    return keys, x",
    )


def test_values_that_a_branch_swaps_keep_apart() -> None:
    """first, second = (b, a) if a mask is given else (a, b)."""
    graph = fx.Graph()
    x = made(graph.placeholder("x"), 2, 8)
    graph.placeholder("mask")
    a, b = (made(graph.call_module(n, (x,)), 2, 8, names=[name]) for n, name in (("p", "first"), ("q", "second")))
    guard = {"guard": (Guard("mask is not None", True),), "names": ["first"]}
    c = made(graph.call_module("r", (a,)), 2, 8, **guard)
    chosen = [
        made(graph.call_function(choose, ("mask is not None", one, other)), 2, 8, names=[name])
        for one, other, name in ((b, c, "first"), (c, b, "second"))
    ]
    graph.output(tuple(chosen))
    assert forward(Unit, graph, {}).lines[3:] == (
        "    if mask is not None:",
        "        first = self.r(first)",
        "        first_2 = second",
        "        second_2 = first",
        "    else:",
        "        first_2 = first",
        "        second_2 = second",
        "    return first_2, second_2",
    )


def test_the_variable_that_takes_a_result_is_read_from_the_code() -> None:
    def source(x: Any) -> Any:
        y = x.norm(x)
        a, b = y.split(2)
        return a + b

    assert list(_stores(source.__code__).values()) == ["y"]


def test_one_size_of_a_shape_is_an_item_and_an_attribute_is_its_name() -> None:
    graph = fx.Graph()
    x = made(graph.placeholder("x"), 2, 3)
    shape = graph.call_function(getattr, (x, "shape"))
    shape.meta["value"] = (torch.Size((2, 3)), torch.Size((2, 3)))
    length = graph.call_function(operator.getitem, (shape, 1))
    length.meta.update(value=(3, 3), names=["length"])
    cache = graph.call_function(getattr, (x, "self_attention_cache"))
    kept = [graph.call_method("update", (cache, length)) for _ in range(2)]
    graph.output((*kept, length))
    assert forward(Unit, graph, {}).lines[1] == "    length = x.shape[1]"
    assert fallback(cache) == "self_attention_cache"


def test_who_looks_at_a_shape_alone_does_not_hide_what_a_value_becomes() -> None:
    graph = fx.Graph()
    x = made(graph.placeholder("x"), 2, 3, 8)
    index: Any = (..., 0, slice(None))
    part = made(graph.call_function(operator.getitem, (x, index)), 2, 8)
    delta = graph.call_method("view_as", (made(graph.call_module("lora", (x,)), 2, 8), part))
    total = made(graph.call_function(torch.add, (part, delta)), 2, 8, replaces=part.name, comment="lora on q")
    heads = made(graph.call_method("transpose", (total, 0, 1)), 8, 2, names=["query"])
    graph.output((heads, heads))
    assert forward(Unit, graph, {}).lines[1:4] == (
        "    query = x[..., 0, :]",
        "    query = torch.add(query, self.lora(x).view_as(query))  # lora on q",
        "    query = query.transpose(0, 1)",
    )


def test_a_variable_keeps_its_value_for_what_still_reads_it() -> None:
    """A pair is taken apart on one side: its second item is read after the first has become the answer."""
    graph = fx.Graph()
    x = made(graph.placeholder("x"), 2, 8)
    graph.placeholder("mask")
    pair = made(graph.call_module("scan", (x,)), 2, 8, names=["answer"])
    guard, inner = Guard("mask is not None", True), Guard("x.shape[0] > 1", True)
    first = made(graph.call_function(operator.getitem, (pair, 0)), 8, guard=(guard, inner), names=["answer"])
    second = made(graph.call_function(operator.getitem, (pair, 1)), 8, guard=(guard, inner), names=["state"])
    made(graph.call_module("keep", (second,)), 8, guard=(guard, inner))
    own = made(graph.call_function(choose, (inner.condition, first, pair)), 8, guard=(guard,), names=["answer"])
    graph.output(made(graph.call_function(choose, (guard.condition, own, pair)), 2, 8, names=["answer"]))
    assert forward(Unit, graph, {}).lines[1:] == (
        "    answer = self.scan(x)",
        "    if mask is not None and x.shape[0] > 1:",
        "        answer_2 = answer[0]",
        "        state = answer[1]",
        "        self.keep(state)",
        "        answer = answer_2",
        "    return answer",
    )


@pytest.mark.parametrize(
    ("method", "word"), [("transpose", "transposed"), ("masked_fill", "masked"), ("view", "viewed")]
)
def test_a_value_without_a_name_is_called_by_what_was_done(method: str, word: str) -> None:
    graph = fx.Graph()
    x = made(graph.placeholder("x"), 2, 8)
    value = made(graph.call_method(method, (x, 0, 1)), 8, 2)
    graph.output((value, value, x))
    assert forward(Unit, graph, {}).lines[1] == f"    {word} = x.{method}(0, 1)"
