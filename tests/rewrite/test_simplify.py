"""What has no effect and no reader is not printed; what may have an effect is."""

from __future__ import annotations

import torch
from torch import fx

from peftc.graph.branches import Guard
from peftc.plan import resolve
from peftc.rewrite import rewrite
from peftc.rewrite.simplify import without_idle
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
