"""A block that computes with the weights of its attention: a prefix would add columns to them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import peftc
from peftc.errors import PeftcError
from tests.laws import spec
from tests.sweep import build
from tests.sweep.registry import registered
from tests.trace.nets import IDS, WIDTH, Attending, Block, attached, made

Use = Callable[[Tensor, Tensor], Tensor]
PREFIX = {"method": "prefix", "length": 3}


class Weighing(Attending):
    """Returns its weights in its own words."""

    def forward(self, x: Tensor, **kwargs: Any) -> Any:
        q, k, v = (p(x).unflatten(-1, (2, 4)).transpose(1, 2) for p in (self.query, self.key, self.value))
        weights = (q @ k.transpose(-1, -2)).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2)), weights.mean(1)


class Torchs(nn.MultiheadAttention):
    """torch's, given one sequence."""

    def __init__(self) -> None:
        super().__init__(WIDTH, 2, batch_first=True)


class Using(Block):
    """Its states, and what is made of the weights."""

    def __init__(self, attending: nn.Module, use: Use) -> None:
        super().__init__()
        del self.attention
        self.attending, self.use = attending, use

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        given = (x, x, x) if isinstance(self.attending, Torchs) else (x,)
        states, weights = self.attending(*given)
        x = self.use(x + states, weights)
        result: Tensor = x + self.down(torch.relu(self.up(x)))
        return result


def blocks(kind: type[nn.Module], use: Use) -> nn.Module:
    return made(lambda: Using(kind(), use))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [Weighing, Torchs])
@pytest.mark.parametrize("use", [lambda x, w: x + w @ x, lambda x, w: x * w.amax(-1, keepdim=True)])
def test_no_prefix_joins_where_the_block_computes_with_the_weights(kind: type[nn.Module], use: Use) -> None:
    """One that would raise at the first forward, and one that would count the prefix's weights."""
    base = blocks(kind, use)
    with pytest.raises(PeftcError, match="returns its weights, and Using computes with them"):
        peftc.attach(copy.deepcopy(base), spec([PREFIX]))
    attached(base)


@pytest.mark.parametrize("kind", [Weighing, Torchs])
def test_one_joins_where_the_block_leaves_them(kind: type[nn.Module]) -> None:
    model = peftc.attach(blocks(kind, lambda x, w: x if w is not None else 2 * x), spec([PREFIX]))
    assert model(IDS).shape == (*IDS.shape, WIDTH)


def test_weights_that_may_be_none_are_not_computed_with() -> None:
    """sdpa returns none, and the base then goes another way than the trace, which has some."""
    model = build.tiny(registered()["t5gemma2"])
    with pytest.raises(PeftcError, match="computes with the weights of its attention, which eager attention alone"):
        peftc.attach(model, spec([{"method": "lora", "at": "cross.q"}]))
