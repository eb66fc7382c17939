"""A linear that a unit calls twice is changed at both calls."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import linear

import peftc
from peftc.errors import PeftcError
from tests.laws import perturbed, spec
from tests.trace.nets import IDS, Attending, Block, made


class Twice(Attending):
    """Keys of what it reads, and of its sum over the positions, which every query sees first."""

    def forward(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        total = x.sum(1, keepdim=True)
        q = self.query(x).unflatten(-1, (2, 4)).transpose(1, 2)
        k, v = (torch.cat([p(total), p(x)], 1).unflatten(-1, (2, 4)).transpose(1, 2) for p in (self.key, self.value))
        result: torch.Tensor = self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return result


class Blocks(Block):
    attends = Twice


class Handed(Attending):
    """One matrix of its own makes the queries and the result; another one's rows make keys and values apart."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.rows = (nn.Parameter(torch.randn(n, 8) * 0.3) for n in (8, 16))

    def forward(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        made = (linear(x, self.both), linear(x, self.rows[:8]), linear(x, self.rows[8:]))
        q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in made)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return linear(mixed, self.both)


class HandedBlocks(Block):
    attends = Handed


def test_a_matrix_that_is_handed_on_twice() -> None:
    base: Any = made(HandedBlocks)
    changed = perturbed(peftc.attach(copy.deepcopy(base), spec([{"method": "lora", "at": ["q", "v"]}])))
    with torch.no_grad():
        for own, other in zip(base.blocks, changed.blocks, strict=True):
            q, v = other.attention.q_lora, other.attention.v_lora
            own.attention.both += q.scale * q.B @ q.A
            own.attention.rows[8:] += v.scale * v.B @ v.A
    torch.testing.assert_close(changed(IDS), base(IDS))


@pytest.mark.parametrize("method", ["lora", "ia3"])
def test_both_calls_are_changed(method: str) -> None:
    """LoRA of any delta is a linear of another weight, a scaled activation one of scaled rows."""
    base: Any = made(Blocks)
    changed: Any = peftc.attach(copy.deepcopy(base), spec([{"method": method, "at": ["k"]}]))
    with torch.no_grad():
        for own, other in zip(base.blocks, changed.blocks, strict=True):
            added = next(m for name, m in other.attention.named_children() if name.endswith(method))
            for parameter in added.parameters():
                parameter.add_(torch.randn_like(parameter))
            if method == "lora":
                own.attention.key.weight += added.scale * added.B @ added.A
            else:
                (scale,) = added.parameters()
                own.attention.key.weight *= scale[:, None]
                own.attention.key.bias *= scale
    torch.testing.assert_close(changed(IDS), base(IDS))


def test_a_gate_that_reads_x_cannot_serve_both() -> None:
    with pytest.raises(PeftcError, match=r"Twice calls key 2 times: a token gate reads the x of one"):
        peftc.attach(made(Blocks), spec([{"method": "lora", "at": ["k"], "gate": "token"}]))
