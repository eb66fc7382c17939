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
from tests.trace.nets import IDS, Attending, Block, Net

REAL = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])


class Seeing(Attending):
    """Its mask is true for what it may attend to."""

    def seen(self, mask: torch.Tensor) -> torch.Tensor:
        return mask

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
        q, k, v = (p(x).unflatten(-1, (2, 4)).transpose(1, 2) for p in (self.query, self.key, self.value))
        seen = None if mask is None else self.seen(mask)[:, None, None, :]
        states = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        result: torch.Tensor = self.out(states.transpose(1, 2).flatten(2))
        return result


class Hiding(Seeing):
    """Its mask is true for padding."""

    def seen(self, mask: torch.Tensor) -> torch.Tensor:
        return ~mask


class Masked(Block):
    """A block whose attention is told of padding."""

    def __init__(self, attention: Seeing) -> None:
        super().__init__()
        self.attention: Seeing = attention

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
        x = x + self.attention(x, mask)
        result: torch.Tensor = x + self.down(torch.relu(self.up(x)))
        return result


class Padded(Net):
    """Its blocks are given where the mask is `of`: 1 is real, 0 is padding."""

    def __init__(self, kind: type[Seeing], of: int) -> None:
        super().__init__([Masked(kind()), Masked(kind())])
        self.of = of

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        x: torch.Tensor = self.embedding(input_ids)
        for block in self.blocks:
            x = block(x, None if attention_mask is None else attention_mask == self.of)
        return x


GATED: list[dict[str, Any]] = [
    {"method": "lora", "at": "q", "rank": 2, "gate": "masked"},
    {"method": "adapter", "gate": "masked"},
]


def test_a_mask_of_real_tokens_leaves_padding_out() -> None:
    torch.manual_seed(0)
    base = Padded(Seeing, 1).eval()
    model = perturbed(peftc.attach(copy.deepcopy(base), spec(copy.deepcopy(GATED))))
    torch.testing.assert_close(model(IDS, REAL)[:1, :3], model(IDS[:1, :3], REAL[:1, :3]))
    assert not torch.allclose(model(IDS, REAL), base(IDS, REAL))


def test_a_mask_of_padding_is_refused() -> None:
    """Read as one of real tokens, it would average over the padding alone."""
    with pytest.raises(PeftcError) as caught:
        peftc.attach(Padded(Hiding, 0).eval(), spec(copy.deepcopy(GATED)))
    wanted = "a masked gate needs the attention mask, and none is known to reach {}"
    assert [p.message for p in caught.value.problems] == [wanted.format("q"), wanted.format("ffn")]
