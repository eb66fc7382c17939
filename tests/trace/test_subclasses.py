"""Attentions that hand what they are given to super().forward, torch's and others."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import peftc
from tests.laws import perturbed, spec
from tests.trace.nets import IDS, WIDTH, Attending, Block

REAL = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


class Torchs(nn.MultiheadAttention):
    """torch's, under options that it does not name."""

    def forward(self, query: Tensor, **options: Any) -> Any:  # type: ignore[override]
        return super().forward(query, query, query, **options)[0]


class Hiding(Attending):
    """Hides padding from its queries."""

    def forward(self, x: Tensor, key_padding_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        q, k, v = (p(x).unflatten(-1, (2, 4)).transpose(1, 2) for p in (self.query, self.key, self.value))
        seen = None if key_padding_mask is None else ~key_padding_mask[:, None, None]
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, seen).transpose(1, 2).flatten(2)
        result: Tensor = self.out(mixed)
        return result


class Handing(Hiding):
    """Does not name what its parent reads."""

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:  # type: ignore[override]
        return super().forward(x, **kwargs)


class Padded(Block):
    def __init__(self, kind: str) -> None:
        super().__init__()
        del self.attention
        self.mixing = Torchs(WIDTH, 2, batch_first=True) if kind == "torch's" else Handing()

    def forward(self, x: Tensor, padding: Tensor | None = None, **kwargs: Any) -> Tensor:
        x = x + self.mixing(x, key_padding_mask=padding)
        result: Tensor = x + self.down(torch.relu(self.up(x)))
        return result


class Net(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.embedding, self.blocks = nn.Embedding(11, WIDTH), nn.ModuleList(Padded(kind) for _ in range(2))

    def forward(self, ids: Tensor, real: Tensor | None = None) -> Tensor:
        x: Tensor = self.embedding(ids)
        for block in self.blocks:
            x = block(x, None if real is None else real == 0)
        return x


@pytest.mark.parametrize("kind", ["torch's", "another"])
def test_what_is_handed_to_the_parent_reaches_it(kind: str) -> None:
    """LoRA on q, against the same model on matrices that hold it, with padding and without."""
    torch.manual_seed(0)
    base = Net(kind).eval()
    entries = [{"method": "lora", "at": "q", "rank": 2, "alpha": 4}]
    model = perturbed(peftc.attach(copy.deepcopy(base), spec(entries)))
    by_hand = copy.deepcopy(base)
    with torch.no_grad():
        for theirs, block in zip(by_hand.blocks, model.blocks, strict=True):
            own, held = block.mixing, dict(theirs.named_parameters())
            lora = own.q_lora if kind == "torch's" else own.query_lora
            query = held["mixing.in_proj_weight" if kind == "torch's" else "mixing.query.weight"]
            query[:WIDTH] += 2 * lora.B @ lora.A
    for real in (None, REAL):
        torch.testing.assert_close(model(IDS, real), by_hand(IDS, real))
        assert not torch.allclose(model(IDS, real), base(IDS, real))
