"""A forward that goes another way where there is less to read, or far more, than in any example."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from peftc.graph.branches import assume
from peftc.trace import trace_model
from tests.trace.nets import WIDTH, Block, attached, made

LORA = {"method": "lora", "at": ["q", "v"], "rank": 2}
ADAPTER = {"method": "adapter", "bottleneck": 2}


class Halved(Block):
    """Weakens what is long."""

    def prepared(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return x / 2 if x.shape[1] > 100 else x


class Doubled(Block):
    """Strengthens what is short."""

    def prepared(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return x if x.shape[1] >= 4 else 2 * x


class Summaries(nn.Module):
    """One vector for every 60 positions, and how much of each counts, where there is any."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        whole = x.shape[1] // 60
        summed = self.map(x[:, : whole * 60]).reshape(len(x), whole, 60, WIDTH).mean(2)
        return summed, (summed.mean((1, 2)) if whole else None)


class Summed(Block):
    """Reads summaries beside the positions."""

    def __init__(self) -> None:
        super().__init__()
        self.summaries = Summaries()

    def prepared(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        summaries, weights = self.summaries(x)
        read = torch.cat([x, summaries], 1)
        if read.shape[1] > x.shape[1]:
            x = x + read.mean(1, keepdim=True) * weights[:, None, None]
        return x


@pytest.mark.parametrize("kind", [Halved, Doubled, Summed])
def test_no_length_is_refused(kind: type[Block]) -> None:
    model = made(kind)
    assert not any(n.target is assume for unit in trace_model(model).units for n in unit.graph.nodes)
    changed = attached(model, LORA, ADAPTER)
    for length in (1, 3, 59, 130):
        ids = torch.arange(2 * length).reshape(2, length) % 11
        torch.testing.assert_close(changed(ids), model(ids))
