"""A model of torch's own layers, which assert what they are given, and have a faster way of their own."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

import peftc
from tests.laws import perturbed, spec
from tests.trace.nets import IDS, WIDTH

REAL = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


class Stack(nn.Module):
    """An embedding and layers, a mask of numbers for them."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, WIDTH)
        layers = (nn.TransformerEncoderLayer(WIDTH, 2, 12, batch_first=True) for _ in range(2))
        self.layers = nn.ModuleList(layers)

    def forward(self, ids: Tensor, real: Tensor | None = None) -> Tensor:
        x: Tensor = self.embedding(ids)
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=None if real is None else real == 0)
        return x


def test_what_is_added_is_not_passed_by() -> None:
    """Neither where no gradient is asked for, nor where a mask is given."""
    torch.manual_seed(0)
    base = Stack().eval()
    model = peftc.attach(copy.deepcopy(base), spec([{"method": "adapter", "bottleneck": 3}]))
    for real in (None, REAL):
        torch.testing.assert_close(model(IDS, real), base(IDS, real))
    perturbed(model)
    for real in (None, REAL):
        said = model(IDS, real)
        with torch.no_grad():
            torch.testing.assert_close(model(IDS, real), said)
        assert not torch.allclose(said, base(IDS, real))
