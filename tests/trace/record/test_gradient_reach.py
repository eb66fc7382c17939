"""Layers that run without gradients, to decide something, are no layers to train."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from peftc.trace import trace_model
from tests.trace.nets import WIDTH, Block, Net


class Deciding(nn.Module):
    """Blocks that only count how much of the input the others read."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, WIDTH)
        self.deciding, self.reading = (nn.ModuleList([Block(), Block()]) for _ in range(2))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x: torch.Tensor = self.embedding(ids)
        with torch.no_grad():
            kept = x
            for block in self.deciding:
                kept = block(kept)
        x = x * (kept.mean(-1, keepdim=True) > 0)
        for block in self.reading:
            x = block(x)
        return x


def test_layers_that_no_gradient_reaches() -> None:
    trace = trace_model(Deciding())
    assert [layer.path for layer in trace.layers] == ["reading.0", "reading.1"]
    assert trace.untraced["deciding.1"] == "no gradient reaches it"


@dataclass
class Said:
    """An output of no library."""

    states: torch.Tensor


class Kept:
    """One that nothing is known of."""

    def __init__(self, states: torch.Tensor) -> None:
        self.states = states


class Saying(Net):
    """Returns its states in an object."""

    def __init__(self, kind: Callable[[torch.Tensor], Any]) -> None:
        super().__init__([Block(), Block()])
        self.kind = kind

    def forward(self, ids: torch.Tensor) -> Any:
        return self.kind(super().forward(ids))


@pytest.mark.parametrize("kind", [Said, Kept])
def test_what_an_output_holds_is_reached(kind: Callable[[torch.Tensor], Any]) -> None:
    """In a dataclass; and anything is where nothing is known of the output."""
    trace = trace_model(Saying(kind))
    assert not trace.untraced and [layer.path for layer in trace.layers] == ["blocks.0", "blocks.1"]
