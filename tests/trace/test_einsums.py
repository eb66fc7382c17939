"""Attentions that are written as einsums: a prefix in them is a prefix in the same products of plain matrices."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import peftc
from peftc.graph.sites import Attention
from peftc.graph.sites import Written as Products
from peftc.methods.prefix import Prefix
from peftc.trace.roles.attention import attention_sites
from tests.laws import move, spec
from tests.trace.nets import IDS, WIDTH, Attending, Block, made
from tests.trace.seen import seen

SCORES, TOTAL = "bind,bjnd->bnij", "bnij,bjnd->bind"


class Written(Attending):
    """softmax(query key') value, each of them (batch, length, heads, width)."""

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        mixed: Tensor = self.mixed(*(p(x).unflatten(-1, (2, 4)) for p in (self.query, self.key, self.value)))
        result: Tensor = self.out(mixed.flatten(2))
        return result

    def mixed(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query, key, value = (states.transpose(1, 2) for states in (query, key, value))
        return (torch.softmax(query @ key.transpose(-1, -2), -1) @ value).transpose(1, 2)


class Summed(Written):
    def mixed(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return torch.einsum(TOTAL, torch.softmax(torch.einsum(SCORES, query, key), -1), value)


class Turned(Written):
    def mixed(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query, key, value = query.transpose(1, 2), key.permute(0, 2, 3, 1), value.permute(1, 2, 0, 3)
        scores = torch.einsum("bhld,bhdt->bhlt", (query, key))
        return torch.einsum("bhlt,thbd->blhd", (torch.softmax(scores, -1), value))


class Folded(Written):
    """Two heads of one example apart, in an axis that is neither's."""

    def mixed(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query, key, value = (t.transpose(1, 2).flatten(0, 1)[:, None] for t in (query, key, value))
        total = torch.einsum("bxtc,bxcd->bxtd", torch.softmax(torch.einsum("bxtd,bxcd->bxtc", query, key), -1), value)
        apart: Tensor = total.unflatten(0, (-1, 2)).squeeze(2).transpose(1, 2)
        return apart


class Twice(Written):
    """Another softmax over the same keys."""

    def mixed(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        pairs = torch.stack([key, key], 1)
        other = torch.softmax(torch.einsum("bind,bmjnd->bmnij", query, pairs), -1).mean((1, 2, 4))
        return torch.einsum(TOTAL, torch.softmax(torch.einsum(SCORES, query, key), -1), value) + other[..., None, None]


class Flows(Attending):
    """Another softmax of the same scores, over the values of what runs beside x; or over those of x."""

    beside = True

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        query, key, value = (p(x).unflatten(-1, (2, 4)).transpose(1, 2) for p in (self.query, self.key, self.value))
        other = self.out(torch.ones_like(x) if self.beside else x).unflatten(-1, (2, 4)).transpose(1, 2)
        scores = query @ key.transpose(-1, -2)
        total, second = torch.softmax(scores, -1) @ value, torch.softmax(scores + 1, -1) @ other
        result: Tensor = torch.cat([total, second], -1)
        return result


class Alike(Flows):
    beside = False


def prefixed(kind: type[Written], **settings: str) -> Tensor:
    """What a model gives with a prefix whose tables are no longer small."""
    model: Any = made(Block)
    for block in model.blocks:
        attention = kind()
        attention.load_state_dict(block.attention.state_dict())
        block.attention = attention.eval()
    changed = peftc.attach(copy.deepcopy(model), spec([{"method": "prefix", "length": 3, **settings}]))
    with torch.no_grad():
        move((p for name, p in changed.named_parameters() if "_prefix" in name), by=1.0)
        made_of: Tensor = changed(IDS)
        assert not torch.allclose(made_of, model(IDS), atol=1e-2)
    return made_of


@pytest.mark.parametrize("kind", [Summed, Turned])
def test_a_prefix_is_that_of_plain_products(kind: type[Written]) -> None:
    torch.testing.assert_close(prefixed(kind), prefixed(Written))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Folded, "not (batch, heads"),
        (Twice, "another softmax weighs its keys"),
        (Alike, "another softmax weighs its keys"),
    ],
)
def test_what_no_prefix_can_join(kind: type[nn.Module], said: str) -> None:
    sites = [site for site in attention_sites(seen(kind(), WIDTH)) if isinstance(site, Attention)]
    assert len(sites) == 1
    assert said in (Prefix().refusal(sites[0]) or "")


def test_another_flow_that_shares_the_scores_stays_as_it_is() -> None:
    (site, *_) = (site for site in attention_sites(seen(Flows(), WIDTH)) if isinstance(site, Attention))
    assert isinstance(site.written, Products), site.written
    assert Prefix().refusal(site) is None
