"""Streams of (length, batch, width): what averages over the sequence would average over the batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import peftc
from peftc.errors import PeftcError
from peftc.graph.sites import Projection, Sublayer
from peftc.trace import trace_model
from tests.laws import spec
from tests.trace.nets import IDS, Attending, Block, Net, attached, made


class Turned(Attending):
    def forward(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return super().forward(x.transpose(0, 1)).transpose(0, 1)


class LengthFirst(Block):
    def __init__(self) -> None:
        super().__init__()
        self.attention = Turned()


class TurnedNet(Net):
    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embedding(ids).transpose(0, 1)
        for block in self.blocks:
            x = block(x)
        result: torch.Tensor = x.transpose(0, 1)
        return result


def net() -> TurnedNet:
    return TurnedNet([LengthFirst(), LengthFirst()]).eval()


def test_the_order_of_the_axes_is_seen() -> None:
    for model, turned in ((net(), True), (made(Block), False)):
        sites = [site for unit in trace_model(model).units for site in unit.sites]
        assert {s.turned for s in sites if isinstance(s, Sublayer) or s.name.startswith("ffn_up")} == {turned}  # type: ignore[union-attr]
        assert any(isinstance(site, Projection) for site in sites)


@pytest.mark.parametrize("entry", [{"method": "adapter"}, {"method": "lora", "at": ["ffn_up"]}])
def test_a_gate_over_the_sequence_is_refused(entry: dict[str, Any]) -> None:
    with pytest.raises(PeftcError, match="has its length before its batch"):
        peftc.attach(net(), spec([{**entry, "gate": "sequence"}]))
    attached(net(), {**entry, "gate": "token"})(IDS)


class Folded(Attending):
    """Keys and values of (length, batch, width), their heads and examples in one axis for the products."""

    def forward(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        length, batch, width = x.shape
        q, k, v = (p(x).view(length, 2 * batch, 4).transpose(0, 1) for p in (self.query, self.key, self.value))
        weights = torch.softmax(q @ k.transpose(1, 2) / 2.0, -1)
        result: torch.Tensor = self.out((weights @ v).transpose(0, 1).reshape(length, batch, width))
        return result


def test_a_prefix_of_heads_and_examples_in_one_axis_behind_the_length() -> None:
    own, like = net(), net()
    for block in own.blocks:
        block.attention = Folded()
    like.load_state_dict(own.state_dict())
    torch.testing.assert_close(own(IDS), like(IDS))
    both = [peftc.attach(model, spec([{"method": "prefix", "length": 3}])) for model in (own, like)]
    learnt = [[p for p in model.parameters() if p.requires_grad] for model in both]
    with torch.no_grad():
        for one, other in zip(*learnt, strict=True):
            other.copy_(one.add_(torch.randn_like(one)))
    torch.testing.assert_close(own(IDS), like(IDS))
