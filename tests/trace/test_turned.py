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
