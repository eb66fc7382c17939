"""Streams of (length, batch, width), against the same model with streams of (batch, length, width)."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import peftc
from peftc.graph.sites import Projection, Sublayer
from peftc.trace import trace_model
from tests.laws import perturbed, spec
from tests.trace.nets import IDS, Attending, Block, Net, made


class Turned(Attending):
    def forward(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return super().forward(x.transpose(0, 1)).transpose(0, 1)


class LengthFirst(Block):
    attends = Turned


class TurnedNet(Net):
    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embedding(ids).transpose(0, 1)
        for block in self.blocks:
            x = block(x)
        result: torch.Tensor = x.transpose(0, 1)
        return result


def net() -> TurnedNet:
    return TurnedNet([LengthFirst(), LengthFirst()]).eval()


def by_name(model: nn.Module) -> dict[str, nn.Parameter]:
    """What trains, by its names without the unit that holds it: the attention, or the block around it."""
    return {name.replace("attention.", ""): p for name, p in model.named_parameters() if p.requires_grad}


def check_alike(turned: nn.Module, like: nn.Module, *entries: dict[str, Any]) -> None:
    """That two models which differ in the order of their axes compute the same with the same additions."""
    like.load_state_dict(turned.state_dict())
    torch.testing.assert_close(turned(IDS), like(IDS))
    own, other = (peftc.attach(copy.deepcopy(model), spec([*entries])) for model in (turned, like))
    learnt, same = by_name(perturbed(own)), by_name(other)
    assert learnt.keys() == same.keys()
    with torch.no_grad():
        for name, parameter in same.items():
            parameter.copy_(learnt[name])
    torch.testing.assert_close(own(IDS), other(IDS))
    assert not torch.allclose(own(IDS), turned(IDS))
    for model in (own, other):
        model(IDS).pow(2).sum().backward()
    for name, parameter in same.items():
        torch.testing.assert_close(learnt[name].grad, parameter.grad)


def test_the_order_of_the_axes_is_seen() -> None:
    for model, turned in ((net(), True), (made(Block), False)):
        sites = [site for unit in trace_model(model).units for site in unit.sites]
        assert {s.turned for s in sites if isinstance(s, Sublayer) or s.name.startswith("ffn_up")} == {turned}  # type: ignore[union-attr]
        assert any(isinstance(site, Projection) for site in sites)


GATES: list[Any] = ["sequence", "token", "constant", {"kind": "sequence", "scope": "layer"}]
GATES += [{"kind": "token", "scope": "layer"}]


@pytest.mark.parametrize("gate", GATES, ids=str)
def test_a_gate_reads_it_as_examples_of_positions(gate: Any) -> None:
    entries: list[dict[str, Any]] = [{"method": "adapter"}, {"method": "lora", "at": ["ffn_up"], "rank": 2}]
    if isinstance(gate, str):
        entries.append({"method": "ia3", "at": ["ffn_down"]})  # which reads another width
    check_alike(net(), made(Block), *({**entry, "gate": gate} for entry in entries))


class Folded(Attending):
    """Keys and values of (length, batch, width), their heads and examples in one axis for the products."""

    def forward(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        length, batch, width = x.shape
        q, k, v = (p(x).view(length, 2 * batch, 4).transpose(0, 1) for p in (self.query, self.key, self.value))
        weights = torch.softmax(q @ k.transpose(1, 2) / 2.0, -1)
        result: torch.Tensor = self.out((weights @ v).transpose(0, 1).reshape(length, batch, width))
        return result


def test_a_prefix_of_heads_and_examples_in_one_axis_behind_the_length() -> None:
    own = net()
    for block in own.blocks:
        block.attention = Folded()
    check_alike(own, net(), {"method": "prefix", "length": 3})
    for gate in ("sequence", {"kind": "sequence", "scope": "layer"}, {"kind": "central", "shared": "trunk"}):
        entries = {"method": "prefix", "length": 3}, {"method": "lora", "at": ["q"], "rank": 2}
        check_alike(own, made(Block), *({**entry, "gate": gate} for entry in entries))
