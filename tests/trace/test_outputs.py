"""What a sublayer adds to: the stream, whoever adds first, inside the attention or around it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from peftc.graph.sites import Sublayer
from peftc.trace import trace_model
from peftc.trace.roles.attention import attention_sites
from peftc.trace.roles.blocks import with_output
from tests.trace.nets import WIDTH, Attending, Block, Net
from tests.trace.seen import seen, sites


class Parallel(nn.Module):
    """Attention and feed-forward side by side: (attention + feed-forward) + x, or (x + attention) + feed-forward.

    Without either, x is added by what calls it.
    """

    def __init__(self, last: bool | None) -> None:
        super().__init__()
        self.last, self.norm = last, nn.LayerNorm(WIDTH)
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        read = self.norm(x)
        query, key, value = (part(read).unflatten(-1, (2, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        attended = self.o(nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
        fed = self.down(torch.relu(self.up(read)))
        if self.last is None:
            both: Tensor = attended + fed
            return both
        made: Tensor = (attended + fed) + x if self.last else (x + attended) + fed
        return made


@pytest.mark.parametrize("last", [False, True])
def test_sublayers_side_by_side_have_the_stream_as_their_residual(last: bool) -> None:
    found = sites(Parallel(last), WIDTH)
    sublayers = [site for name in ("attention_output", "ffn") if isinstance(site := found[name], Sublayer)]
    assert [site.residual for site in sublayers] == ["x", "x"]


def test_a_stream_that_is_added_outside_is_nobodys_residual() -> None:
    """The one's output is not what the other's is added to."""
    found = sites(Parallel(None), WIDTH)
    sublayers = [site for name in ("attention_output", "ffn") if isinstance(site := found[name], Sublayer)]
    assert [site.output for site in sublayers] == ["o", "down"]
    assert {(site.residual, site.sum, site.input) for site in sublayers} == {(None, None, "norm")}


class Adding(nn.Module):
    """An attention that adds what it reads to what it makes."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.norm = Attending(), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.norm(x + self.attention(x))
        return made


def test_an_attention_that_adds_its_residual_itself_has_an_output() -> None:
    view = seen(Adding(), WIDTH)
    output = next(site for site in with_output(view, attention_sites(view)) if isinstance(site, Sublayer))
    assert (output.name, output.residual, output.norm) == ("attention_output", "x", "norm")


class Widened(nn.Linear):
    """A linear map with a small one beside it."""

    def __init__(self) -> None:
        super().__init__(WIDTH, WIDTH)
        self.beside = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = super().forward(x) + self.beside(x)
        return made


def test_no_linear_behind_the_sum_is_the_attentions_own() -> None:
    """Where two make the attention's output, neither alone is o, nor is what comes behind them in the block."""
    block = Block()
    block.attention.out = Widened()
    layer = trace_model(Net([block, copy.deepcopy(block)])).layers[0]
    assert "o" not in layer.site_names()
    assert {"attention_output", "ffn_up", "ffn_down", "ffn"} <= set(layer.site_names())
