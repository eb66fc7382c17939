"""What is a gate of a feed-forward, and what is no more than its activation, written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from peftc.graph.sites import Projection
from tests.trace.seen import sites

WIDTH = 8


class Written(nn.Module):
    """A feed-forward whose activation is a product: of one projection, or of two parts of it."""

    def __init__(self, gated: bool) -> None:
        super().__init__()
        self.gated = gated
        self.up, self.down = nn.Linear(WIDTH, 24), nn.Linear(12 if gated else 24, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        one = other = self.up(x)
        if self.gated:
            one, other = one.chunk(2, -1)
        made: Tensor = x + self.down(one * 0.5 * (1 + torch.tanh(other)))
        return made


@pytest.mark.parametrize("gated", [False, True])
def test_a_product_of_one_projection_with_itself_is_its_activation(gated: bool) -> None:
    found = sites(Written(gated), WIDTH)
    assert set(found) == {"ffn_up", "ffn_down", "ffn"} | ({"ffn_gate"} if gated else set())


class Clamped(nn.Module):
    """A gated feed-forward that names its gate last, and shifts and bounds the other part."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(WIDTH, 12), nn.Linear(WIDTH, 12), nn.Linear(12, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate(x).clamp(max=7), self.up(x).clamp(-7, 7)
        made: Tensor = x + self.down((up + 1) * (gate * torch.sigmoid(gate * 1.7)))
        return made


class Rectified(Clamped):
    """A gate whose activation is a bound."""

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = x + self.down(self.up(x) * self.gate(x).clamp(min=0))
        return made


@pytest.mark.parametrize("kind", [Clamped, Rectified])
def test_what_bounds_is_an_activation_where_there_is_no_other(kind: type[nn.Module]) -> None:
    found = sites(kind(), WIDTH)
    modules = {name: site.module for name, site in found.items() if isinstance(site, Projection)}
    assert modules == {"ffn_gate": "gate", "ffn_up": "up", "ffn_down": "down"}
