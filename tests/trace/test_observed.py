"""What a model does to itself while it runs is seen, and left alone."""

from __future__ import annotations

import pytest
import torch

import peftc
from peftc.trace import trace_model
from tests.trace.nets import Attending, Block, Net, attached


class Plain(Attending):
    """What takes the place of another attention."""


class Settling(Net):
    """Puts modules of another class in the place of its attentions, on their weights."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            if type(block.attention) is Attending:
                plain = Plain()
                plain._modules.update(block.attention._modules)
                block.attention = plain
        return super().forward(ids)


def settling() -> Net:
    torch.manual_seed(0)
    return Settling([Block(), Block()]).eval()


def test_a_module_that_its_model_replaces_is_no_unit() -> None:
    trace = trace_model(settling())
    why = "Attending becomes Plain while the model runs"
    assert trace.untraced == {"blocks.0.attention": why, "blocks.1.attention": why}
    attached(settling(), {"method": "adapter", "bottleneck": 2})
    with pytest.raises(peftc.PeftcError, match=why):
        attached(settling(), {"method": "lora", "at": ["q"], "rank": 2})
