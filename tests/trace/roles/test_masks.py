"""Masked gates read a mask as the model's parameter says it: one that says the opposite is no mask for them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import peftc
from peftc.errors import PeftcError
from tests.laws import perturbed, spec
from tests.trace.nets import IDS, WIDTH

REAL = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])


class Attending(nn.Module):
    """Its mask is true for padding where `hides`, for real tokens elsewhere."""

    def __init__(self, hides: bool) -> None:
        super().__init__()
        self.hides = hides
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        q, k, v = (p(x).unflatten(-1, (2, 4)).transpose(1, 2) for p in (self.query, self.key, self.value))
        seen = None
        if mask is not None:
            seen = (~mask if self.hides else mask)[:, None, None, :]
        states = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        result: torch.Tensor = self.out(states.transpose(1, 2).flatten(2))
        return result


class Block(nn.Module):
    def __init__(self, hides: bool) -> None:
        super().__init__()
        self.attention, self.up, self.down = Attending(hides), nn.Linear(WIDTH, 12), nn.Linear(12, WIDTH)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        x = x + self.attention(x, mask)
        result: torch.Tensor = x + self.down(torch.relu(self.up(x)))
        return result


class Net(nn.Module):
    def __init__(self, hides: bool) -> None:
        super().__init__()
        self.hides, self.embedding = hides, nn.Embedding(11, WIDTH)
        self.blocks = nn.ModuleList(Block(hides) for _ in range(2))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        x: torch.Tensor = self.embedding(input_ids)
        mask = None if attention_mask is None else attention_mask == (0 if self.hides else 1)
        for block in self.blocks:
            x = block(x, mask)
        return x


GATED: list[dict[str, Any]] = [
    {"method": "lora", "at": "q", "rank": 2, "gate": "masked"},
    {"method": "adapter", "gate": "masked"},
]


def test_a_mask_of_real_tokens_leaves_padding_out() -> None:
    torch.manual_seed(0)
    base = Net(hides=False).eval()
    model = perturbed(peftc.attach(copy.deepcopy(base), spec(copy.deepcopy(GATED))))
    torch.testing.assert_close(model(IDS, REAL)[:1, :3], model(IDS[:1, :3], REAL[:1, :3]))
    assert not torch.allclose(model(IDS, REAL), base(IDS, REAL))


def test_a_mask_of_padding_is_refused() -> None:
    """Read as one of real tokens, it would average over the padding alone."""
    with pytest.raises(PeftcError) as caught:
        peftc.attach(Net(hides=True).eval(), spec(copy.deepcopy(GATED)))
    wanted = "a masked gate needs the attention mask, and none is known to reach {}"
    assert [p.message for p in caught.value.problems] == [wanted.format("q"), wanted.format("ffn")]
