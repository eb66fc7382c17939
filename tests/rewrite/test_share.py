"""Units whose code comes to the same after their modules are calls again are one class."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from peftc.emit.artifact import printed
from peftc.plan import resolve
from peftc.rewrite import rewrite
from peftc.rewrite.share import named
from peftc.runtime.proof import prove
from peftc.trace import trace_model
from tests.laws import spec
from tests.trace.nets import WIDTH, Block, Net


class Feeding(nn.Module):
    def __init__(self, deep: bool) -> None:
        super().__init__()
        self.up, self.down, self.deep = nn.Linear(WIDTH, 12), nn.Linear(12, WIDTH), deep

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        up = torch.relu(self.up(x))
        result: torch.Tensor = self.down(torch.tanh(up) if self.deep else up)
        return result


class Fed(Block):
    """A block whose feed-forward is a module of its own."""

    def __init__(self, deep: bool) -> None:
        super().__init__()
        self.feed = Feeding(deep)
        del self.up, self.down

    def forward(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        x = x + self.attention(x)
        result: torch.Tensor = x + self.feed(x)
        return result


def test_what_differs_inside_a_module_that_is_called_makes_no_class() -> None:
    trace = trace_model(Net([Fed(False), Fed(True), Fed(False)]).eval())
    deltas: dict[str, Any] = {"method": "lora", "at": ["ffn_up"], "layers": "last 1", "rank": 2}
    program = rewrite(resolve(spec([{"method": "adapter", "at": ["ffn"]}, deltas]), trace), trace)
    assert [(body.name, body.paths) for body in program.bodies] == [
        ("FedAdapter", ("blocks.0",)), ("FedAdapter", ("blocks.1",)), ("FedLoraAdapter", ("blocks.2",)),
    ]  # fmt: skip
    text = printed(program).text
    assert text.count("class Fed") == 2 and '"blocks.{0-1}": FedAdapter' in text
    assert sum("FedAdapter: without additions equal" in line for line in prove(program).lines) == 1


def test_a_number_behind_a_digit_stands_apart() -> None:
    trace = trace_model(Net([Fed(False), Fed(True)]).eval())
    bodies = rewrite(resolve(spec([{"method": "adapter", "at": ["ffn"]}]), trace), trace).bodies
    alike = [[replace(body, unit=replace(body.unit, name="Fed2"))] for body in bodies]
    assert [body.name for body in named(alike)] == ["Fed2_1", "Fed2_2"]
