"""Forwards that ask where their tensors are, or whether autocast is on: they are traced on the meta device alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.utils.generic import maybe_autocast

import peftc
from peftc.errors import PeftcError
from peftc.graph.branches import choose
from peftc.graph.sites import Trace
from peftc.trace import trace_model
from tests.laws import spec
from tests.trace.nets import WIDTH, Attending, Block, attached, made, sites


class Shifted(Attending):
    """Makes positions where its weights are, but for the meta device; on a GPU it computes otherwise."""

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        device = self.query.weight.device if self.query.weight.device.type != "meta" else None
        shift = torch.arange(x.shape[1], device=device)[None, :, None]
        if x.device.type == "cuda":
            x = x * 2
        return super().forward(x + 0.1 * shift)


class ShiftedBlock(Block):
    attends = Shifted


def traced(trace: Trace, name: str) -> Mapping[str, Any]:
    (unit,) = (unit for unit in trace.units if unit.name == name)
    return {node.name: node for node in unit.graph.nodes}


def test_no_branch_on_the_device_is_baked_in() -> None:
    model = made(ShiftedBlock)
    attached(model)
    found = traced(trace_model(model), "Shifted")
    assert found["arange"].kwargs["device"].args[1] == "device"
    (chosen,) = (node for node in found.values() if node.target is choose)
    assert "cuda" in chosen.args[0].args


class Guarded(Attending):
    """Attends in full precision under autocast, too."""

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        with torch.autocast(device_type=x.device.type, enabled=False):
            return super().forward(x)


class GuardedBlock(Block):
    attends = Guarded


class Asking(Attending):
    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        return super().forward(x if torch.is_autocast_enabled("cpu") else x.float())


class AskingBlock(Block):
    attends = Asking


@pytest.mark.parametrize("kind", [GuardedBlock, AskingBlock])
def test_an_attention_that_depends_on_autocast_has_no_sites(kind: type[nn.Module]) -> None:
    with pytest.raises(PeftcError, match=r"enters torch\.autocast, or asks for it"):
        peftc.attach(made(kind), spec([{"method": "lora", "at": "q"}]))


class Apart(Attending):
    """Attends in a method of its own, in full precision under autocast, too."""

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        q, k, v = (p(x).unflatten(-1, (2, 4)).transpose(1, 2) for p in (self.query, self.key, self.value))
        mixed, _ = self.mixed(q, k, v)
        result: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return result

    def mixed(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        with maybe_autocast(query.device.type, enabled=False):
            weights = (query.float() @ key.float().transpose(-1, -2)).softmax(-1).to(value.dtype)
        return weights @ value, weights


class ApartBlock(Block):
    attends = Apart


def test_an_attention_in_a_method_that_enters_autocast_takes_all_but_a_prefix() -> None:
    model = made(ApartBlock)
    attached(model)
    assert {"q", "k", "v", "o", "attention"} <= {*sites(trace_model(model))[0]}
    with pytest.raises(PeftcError, match="is computed by a function of the model's own"):
        peftc.attach(model, spec([{"method": "prefix", "length": 2}]))


class Full(nn.Module):
    """A map in full precision under autocast, too."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(device_type=x.device.type, enabled=False):
            result: Tensor = self.map(x)
            return result


class FullBlock(Block):
    def __init__(self) -> None:
        super().__init__()
        self.full = Full()

    def prepared(self, x: Tensor, **kwargs: Any) -> Tensor:
        result: Tensor = x + self.full(x)
        return result


def test_a_part_that_enters_autocast_stays_whole() -> None:
    model = made(FullBlock)
    attached(model)
    trace = trace_model(model)
    assert {"q", "ffn_up", "ffn"} <= {*sites(trace)[0]}
    assert traced(trace, "FullBlock")["full"].op == "call_module"
