"""An attention that a config sends one of two ways: by torch's own function, or in the module's words."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import peftc
from tests.laws import spec
from tests.trace.nets import IDS, Attending, Block, Net

PREFIX = [{"method": "prefix", "length": 3}, {"method": "lora", "at": ["k"], "rank": 2}]


class Both(Attending):
    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(_attn_implementation="sdpa")

    def forward(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        q, k, v = (p(x).unflatten(-1, (2, 4)).transpose(1, 2) for p in (self.query, self.key, self.value))
        if self.config._attn_implementation == "eager":
            attended = self.weights(x, q, k) @ v
        else:
            attended = nn.functional.scaled_dot_product_attention(q, k, v)
        result: torch.Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return result

    def weights(self, x: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return torch.softmax(q @ k.transpose(-1, -2) / 2.0, -1)


class Summing(Both):
    def weights(self, x: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return super().weights(x, q, k).cumsum(-1)


class Choosing(Both):
    """Its words have keys of their own."""

    def weights(self, x: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return super().weights(x, q, self.query(x).unflatten(-1, (2, 4)).transpose(1, 2))


def net(kind: type[Both]) -> Net:
    torch.manual_seed(0)
    block = Block()
    block.attention = kind()
    return Net([block]).eval()


def test_a_prefix_joins_both() -> None:
    model = net(Both)
    before, changed = model(IDS), peftc.attach(model, spec(PREFIX))
    with torch.no_grad():
        for p in changed.parameters():
            p.add_(torch.randn_like(p) if p.requires_grad else 0)
    own = changed(IDS)
    attention: Any = changed.get_submodule("blocks.0.attention")
    attention.config._attn_implementation = "eager"
    assert not torch.allclose(own, before, atol=1e-2)
    torch.testing.assert_close(changed(IDS), own)


@pytest.mark.parametrize(
    ("kind", "said"),
    [(Summing, "in one it .* weights pass cumsum"), (Choosing, "in which other projections make its keys")],
)
def test_a_prefix_that_would_miss_one_joins_none(kind: type[Both], said: str) -> None:
    with pytest.raises(peftc.PeftcError, match=f"attention stands in two branches, (and )?{said}"):
        peftc.attach(net(kind), spec(PREFIX[:1]))
