"""Flags that every call of the examples gives the same way: the other way is a condition too."""

from __future__ import annotations

from typing import Any

import torch

from peftc.graph.branches import assume
from peftc.trace import trace_model
from tests.trace.nets import IDS, Attending, Block, Net, attached


class Weighing(Attending):
    """Hands its weights back where it is told to."""

    def forward(self, x: torch.Tensor, weights: bool = False, **kwargs: Any) -> Any:
        q, k, v = self.query(x), self.key(x), self.value(x)
        found = (q @ k.transpose(1, 2)).softmax(-1)
        out = self.out(found @ v)
        return (out, found) if weights else (out,)


class Telling(Block):
    attends = Weighing

    def forward(self, x: torch.Tensor, weights: bool = False, **kwargs: Any) -> Any:
        attended = self.attention(x, weights)
        x = x + attended[0]
        x = x + self.down(torch.relu(self.up(x)))
        return (x, attended[1]) if weights else (x,)


class Asked(Net):
    def forward(self, ids: torch.Tensor, weights: bool = False) -> Any:
        x, found = self.embedding(ids), []
        for block in self.blocks:
            x, *more = block(x, weights)
            found += more
        return (x, found) if weights else x


def test_a_flag_is_a_condition() -> None:
    torch.manual_seed(0)
    model = Asked([Telling(), Telling()]).eval()
    assert not any(n.target is assume for unit in trace_model(model).units for n in unit.graph.nodes)
    torch.testing.assert_close(attached(model)(IDS, True), model(IDS, True))
