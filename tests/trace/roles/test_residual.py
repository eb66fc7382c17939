"""What joins the residual stream, written in unusual ways."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from peftc.graph.sites import Sublayer
from tests.trace.nets import WIDTH, Attending
from tests.trace.seen import sites


class Adding(nn.Module):
    """Adds by a method."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.up, self.down = Attending(), nn.Linear(WIDTH, 12), nn.Linear(12, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x.add(self.attention(x), alpha=0.5)
        return x.add(self.down(torch.relu(self.up(x))))


def test_a_sum_may_be_a_method() -> None:
    found = sites(Adding(), WIDTH)
    attended, ffn = found["attention_output"], found["ffn"]
    assert isinstance(attended, Sublayer) and isinstance(ffn, Sublayer)
    assert (attended.output, ffn.output) == ("attention_out", "down")


class Expert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 12), nn.Linear(12, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.down(torch.relu(self.up(x)))
        return made


class Weighing(nn.Module):
    """Every expert reads every token, and a number for each says how much; beside them perhaps one for all."""

    def __init__(self, shared: bool) -> None:
        super().__init__()
        self.attention, self.router = Attending(), nn.Linear(WIDTH, 3)
        self.experts, self.shared = nn.ModuleList(Expert() for _ in range(3)), Expert() if shared else None

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        weights, made = torch.sigmoid(self.router(x)), torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            made = made + expert(x) * weights[..., index : index + 1]
        return x + (made if self.shared is None else made + self.shared(x))


@pytest.mark.parametrize("shared", [True, False])
def test_one_expert_of_several_is_not_the_feed_forward(shared: bool) -> None:
    """What all tokens pass is: its projections, where there is one; and what all experts make together."""
    found = sites(Weighing(shared), WIDTH)
    assert "ffn" in found
    projections = [str(getattr(found[name], "module", "")) for name in ("ffn_up", "ffn_down") if name in found]
    assert projections == (["shared.up", "shared.down"] if shared else [])
