"""What has no effect and no reader is not printed; what may have an effect is."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from peftc.graph.branches import Guard, assume
from peftc.plan import resolve
from peftc.rewrite import rewrite
from peftc.rewrite.simplify import _sink, without_idle, without_repeats
from peftc.trace import trace_model
from tests.laws import spec
from tests.trace.nets import Block, made


def test_reads_without_readers_go() -> None:
    graph = fx.Graph()
    x, cache = graph.placeholder("x"), graph.placeholder("cache")
    size, view = graph.call_method("size", (x, 1)), graph.call_method("view", (x, -1))
    half = graph.call_function(torch.ops.aten.relu_, (x,))
    asked, under = graph.call_method("dim", (x,)), graph.call_function(torch.dropout, (x, 0.1, True))
    graph.call_method("update", (cache, x))
    examples = {x: torch.ones(2, 3), size: 3, view: torch.ones(6), half: torch.ones(2, 3), asked: 2}
    for node, example in examples.items():
        node.meta["value"] = (example, example)
    under.meta["guard"] = (Guard(asked, True),)
    graph.output(x)
    without_idle(graph)
    assert [node.name for node in graph.nodes if node.op.startswith("call")] == ["relu_", "dim", "dropout", "update"]


def test_a_method_that_hands_back_what_it_was_given_is_no_call() -> None:
    trace = trace_model(made(Block))
    program = rewrite(resolve(spec([{"method": "adapter", "at": ["ffn"]}]), trace), trace)
    (block,) = program.bodies
    assert "prepared" in {str(node.args[0]) for node in block.unit.graph.nodes if node.args}
    assert "prepared" not in {str(node.target) for node in block.graph.nodes}


def test_a_check_that_was_made_already_is_dropped() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    inner, outer = (
        (Guard("mask is not None", True), Guard("bias is not None", True)),
        (Guard("mask is not None", True),),
    )
    number: Any = int
    for guard in (outer, inner, ()):
        kind = graph.call_function(isinstance, (x, number))
        check = graph.call_function(assume, (kind, False, "Unit is not compiled for such inputs"))
        kind.meta["guard"] = check.meta["guard"] = guard
    graph.output(x)
    without_repeats(graph)
    without_idle(graph)
    assert [node.meta["guard"] for node in graph.nodes if node.target is assume] == [outer, ()]
    assert sum(node.target is isinstance for node in graph.nodes) == 2


def test_what_a_cache_counted_leaves_nothing_where_it_is_not_read() -> None:
    """seen = cache.get_seq_length(), then seen.clone() where that is a tensor."""
    graph = fx.Graph()
    cache = graph.placeholder("cache")
    seen = graph.call_method("get_seq_length", (cache,))
    tensor: Any = torch.Tensor
    kind = graph.call_function(isinstance, (seen, tensor))
    clone = graph.call_method("clone", (seen,))
    clone.meta["guard"] = (Guard(kind, True),)
    for node, value in ((seen, torch.tensor(3)), (kind, True), (clone, torch.tensor(3))):
        node.meta["value"] = (value, value)
    graph.output(cache)
    without_idle(graph)
    assert [node.op for node in graph.nodes] == ["placeholder", "output"]


def test_a_gate_that_both_sides_of_a_branch_read_stands_in_front_of_it() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    gate = graph.call_module("gate", (x,))
    norm = graph.call_module("norm", (x,))
    condition = graph.call_method("any", (graph.call_method("isnan", (norm,)),))
    for side in (True, False):
        graph.call_module("update", (norm, gate)).meta["guard"] = (Guard(condition, side),)
    graph.output(x)
    _sink(graph, {"gate"})
    assert [str(node.target) for node in graph.nodes if node.op == "call_module"] == [
        "norm",
        "gate",
        "update",
        "update",
    ]
