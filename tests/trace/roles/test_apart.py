"""An attention that goes another way where its model says so, by what it finds in the ids."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import peftc
from peftc.errors import PeftcError
from tests.laws import spec
from tests.trace.nets import IDS, Attending, Block, Net

LORA = {"method": "lora", "at": ["q", "v"], "rank": 2}
PREFIX = {"method": "prefix", "length": 2}
FEW = IDS.clamp(max=3)


class Wide(Attending):
    """Adds the mean over some positions, as many as their numbers say, where there is a word for all to see."""

    def forward(self, x: torch.Tensor, wide: bool = False, **kwargs: Any) -> torch.Tensor:
        made = super().forward(x)
        return made + self.value(x)[x[..., 0] < 9].mean(0) if wide else made


class Blocks(Block):
    attends = Wide

    def forward(self, x: torch.Tensor, wide: bool = False, **kwargs: Any) -> torch.Tensor:
        x = x + self.attention(x, wide=wide)
        result: torch.Tensor = x + self.down(torch.relu(self.up(x)))
        return result


class Marked(Net):
    """Any word above `above` is for all to see."""

    def __init__(self, above: int) -> None:
        super().__init__([Blocks(), Blocks()])
        self.above = above

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x, wide = self.embedding(ids), bool((ids > self.above).any())
        for block in self.blocks:
            x = block(x, wide=wide)
        result: torch.Tensor = x
        return result


@pytest.fixture
def model() -> Marked:
    torch.manual_seed(0)
    return Marked(above=5).eval()


def test_linear_maps_hold_on_either_way(model: Marked) -> None:
    changed = peftc.attach(copy.deepcopy(model), spec([LORA]))
    for ids in (IDS, FEW):
        torch.testing.assert_close(changed(ids), model(ids))
    for parameter in changed.parameters():
        parameter.data += 0.1 * parameter.requires_grad
    assert not any(torch.allclose(changed(ids), model(ids), atol=1e-3) for ids in (IDS, FEW))


def test_keys_join_the_way_that_is_traced_alone(model: Marked) -> None:
    changed = peftc.attach(copy.deepcopy(model), spec([PREFIX]))
    assert not torch.equal(changed(FEW), model(FEW))
    with pytest.raises(ValueError, match="Wide is not compiled for such inputs: wide"):
        changed(IDS)


def test_no_keys_where_every_input_goes_the_other_way(model: Marked) -> None:
    model.above = -1
    with pytest.raises(PeftcError, match="on plain inputs its model gives wide=True"):
        peftc.attach(model, spec([PREFIX]))
