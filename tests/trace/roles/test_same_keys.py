"""Several calls of an attention over the same keys: a prefix joins all of them at once, or none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention as attend

import peftc
from peftc.errors import PeftcError
from tests.laws import move, spec
from tests.trace.nets import WIDTH, Attending, Block, Net

PREFIX = {"method": "prefix", "length": 3}


class Differential(Attending):
    """The weights of all heads meet the first half of the values, and its second half."""

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        q, k, v = (p(x).unflatten(-1, (2, 4)).transpose(1, 2) for p in (self.query, self.key, self.value))
        return self.mixed(q, k, v, x)

    def mixed(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
        first, second = (half.repeat(1, 2, 1, 1) for half in v.chunk(2, dim=1))
        return self.joined(attend(q, k, first) - 0.5 * attend(q, k, second))

    def joined(self, heads: Tensor) -> Tensor:
        result: Tensor = self.out(heads.transpose(1, 2).flatten(2))
        return result


class OtherQueries(Differential):
    """What asks second is not what asks first."""

    def mixed(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
        return self.joined(attend(q, k, v) + attend(q.flip(2), k, v))


class Backwards(Differential):
    """The second time the values stand in another order than their keys."""

    def mixed(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
        return self.joined(attend(q, k, v) + attend(q, k, v.flip(2)))


class Counted(Differential):
    """What takes the values apart says how many there are."""

    def mixed(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
        second = v.reshape(x.shape[0], 2, x.shape[1], 4)
        return self.joined(attend(q, k, v) + attend(q, k, second))


def holding(kind: type[nn.Module]) -> Net:
    torch.manual_seed(0)
    blocks = [Block(), Block()]
    for block in blocks:
        block.attention = kind()
    return Net([*blocks]).eval()


def by_hand(owner: Any, attention: Any, x: Tensor) -> Tensor:
    """softmax(q [P_K; K]') [P_V; V] with V + B A x for V, whose halves are taken apart last."""
    learnt = [
        child for name, child in owner.named_children() if name.startswith("attention_prefix") and "gate" not in name
    ]
    gating, lora = getattr(owner, "attention_prefix_gate", None), getattr(owner, "value_lora", None)
    gate = gating(x).view(-1, 1, 1) if gating else 1
    tables = [[table.expand(len(x), -1, -1) * gate for table in child()] for child in learnt]
    v = attention.value(x) + (x @ (lora.scale * lora.B @ lora.A).T if lora else 0)
    keys, values = (torch.cat([*(t[i] for t in tables), own], 1) for i, own in enumerate((attention.key(x), v)))
    q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in (attention.query(x), keys, values))
    weights = (q @ k.transpose(-1, -2) / 2).softmax(-1)
    mixed = weights @ v[:, :1] - 0.5 * (weights @ v[:, 1:])
    result: Tensor = attention.out(mixed.transpose(1, 2).flatten(2))
    return result


CASES = {
    "alone": [PREFIX],
    "gated": [PREFIX | {"gate": "sequence"}],
    "beside LoRA": [PREFIX, {"method": "lora", "at": "v"}],
    "twice": [PREFIX, PREFIX | {"again": True}],
}


@pytest.mark.parametrize("entries", CASES.values(), ids=CASES)
def test_a_prefix_joins_all_calls_over_its_keys(entries: list[dict[str, Any]]) -> None:
    model: Any = peftc.attach(holding(Differential), spec(entries))
    move((p for p in model.parameters() if p.requires_grad), by=1.0)
    x = torch.randn(2, 7, WIDTH)
    for block in model.blocks:
        (owner,) = (module for module in block.modules() if "attention_prefix" in dict(module.named_children()))
        assert owner.attention_prefix()[1].shape == (3, WIDTH)
        attended = x + by_hand(owner, block.attention, x)
        found, wanted = block(x), attended + block.down(torch.relu(block.up(attended)))
        torch.testing.assert_close(found, wanted)
        learnt = [p for p in block.parameters() if p.requires_grad]
        ours, theirs = (torch.autograd.grad(made.square().sum(), learnt) for made in (found, wanted))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [OtherQueries, Backwards, Counted])
def test_where_it_cannot_join_all_of_them_it_joins_none(kind: type[nn.Module]) -> None:
    with pytest.raises(PeftcError, match="attention is one of 2 over the same keys"):
        peftc.attach(holding(kind), spec([PREFIX]))
    peftc.attach(holding(kind), spec([{"method": "lora"}]))
