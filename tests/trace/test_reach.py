"""Layers that run without gradients, to decide something, are no layers to train."""

from __future__ import annotations

import torch
from torch import nn

from peftc.trace import trace_model
from tests.trace.nets import WIDTH, Block


class Deciding(nn.Module):
    """Blocks that only count how much of the input the others read."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, WIDTH)
        self.deciding, self.reading = (nn.ModuleList([Block(), Block()]) for _ in range(2))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x: torch.Tensor = self.embedding(ids)
        with torch.no_grad():
            kept = x
            for block in self.deciding:
                kept = block(kept)
        x = x * (kept.mean(-1, keepdim=True) > 0)
        for block in self.reading:
            x = block(x)
        return x


def test_layers_that_no_gradient_reaches() -> None:
    trace = trace_model(Deciding())
    assert [layer.path for layer in trace.layers] == ["reading.0", "reading.1"]
    assert trace.untraced["deciding.1"] == "no gradient reaches it"
