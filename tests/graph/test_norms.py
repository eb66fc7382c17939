"""The input of an adapter behind a sublayer: the sum of all that the sublayer makes by then, and its residual."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from tests.laws import Entry, perturbed
from tests.trace.nets import IDS, WIDTH, Block, Net, attached


class Parallel(Block):
    """Attention and feed-forward read the same, and are added to each other first."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.feed = nn.LayerNorm(WIDTH), nn.Sequential(self.up, nn.ReLU(), self.down)

    def forward(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        normed = self.norm(x)
        result: torch.Tensor = self.attention(normed) + self.feed(normed) + x
        return result


ADAPTER: Entry = {"method": "adapter", "at": "ffn", "bottleneck": 3, "again": True}


@pytest.mark.parametrize("first", ["parallel", "houlsby"])
def test_behind_what_another_adapter_adds(first: str) -> None:
    torch.manual_seed(0)
    net: Any = Net([Parallel()])
    entries = {**ADAPTER, "variant": first}, {**ADAPTER, "activation": "tanh"}
    model: Any = perturbed(attached(copy.deepcopy(net), *entries))
    block, changed = net.blocks[0], model.blocks[0]
    one, other = sorted(
        (module for name, module in changed.named_children() if "adapter" in name), key=lambda m: m.activation
    )
    with torch.no_grad():
        x = net.embedding(IDS)
        normed = block.norm(x)
        made = block.feed(normed)
        made = made + one(x if first == "parallel" else made)
        made = made + other(made + x)
        torch.testing.assert_close(model(IDS), block.attention(normed) + made + x)
