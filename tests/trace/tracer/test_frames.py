"""A value has the name of where it was made; what a function calls its argument stands in for none."""

from __future__ import annotations

from typing import Any

import torch

from peftc.emit.artifact import printed
from peftc.plan import resolve
from peftc.rewrite import rewrite
from peftc.trace import trace_model
from tests.laws import spec
from tests.trace.nets import Block, made


class Passing(Block):
    """Hands a value that has no name here to a method that has one for it."""

    def forward(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        states = x + self.attention(x)
        halves = self.doubled(self.up(states))
        up, more = halves.split(6, -1)
        result: torch.Tensor = states + self.down(torch.cat([torch.relu(up), more], -1))
        return result

    def doubled(self, y: torch.Tensor) -> torch.Tensor:
        z = y * 2
        return z.tanh()


def test_an_argument_is_no_statement_of_its_own() -> None:
    trace = trace_model(made(Passing))
    program = rewrite(resolve(spec([{"method": "lora", "at": ["ffn_down"], "rank": 2}]), trace), trace)
    lines = [line.strip() for line in printed(program).text.splitlines()]
    assert "halves = self.doubled(self.up(states))" in lines
    assert not any(line.startswith("y = ") for line in lines)
