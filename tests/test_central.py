"""A central gate over several entries of one method, computed again by hand from the weights and the definition."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import peftc
from tests.laws import Entry, perturbed, spec
from tests.zoo import ZOO, inputs

BERT = ZOO[0]
GATE = {"gate": {"kind": "central", "shared": "g"}}
PARALLEL: Entry = {"method": "adapter", "variant": "parallel", "bottleneck": 5, **GATE}
ADAPTERS: list[Entry] = [PARALLEL, {**PARALLEL, "bottleneck": 3, "activation": "tanh", "again": True}]
UP: Entry = {"method": "lora", "at": "ffn_up", **GATE}


def attached(entries: list[Entry]) -> Any:
    return perturbed(peftc.attach(BERT.model(), spec(entries, BERT)))


def shares(gate: Any, x: Tensor) -> Tensor:
    """(members, batch, 1, 1): softmax over the members of the mean over the sequence of relu(W x + b)."""
    return torch.softmax(torch.relu(x @ gate.weight.T + gate.bias).mean(1), -1).T[..., None, None]


def delta(adapter: Any, x: Tensor) -> Tensor:
    inner: Tensor = getattr(torch, adapter.activation)(x @ adapter.down.T + adapter.down_bias)
    out: Tensor = inner @ adapter.up.T + adapter.up_bias
    return out


def seen(module: nn.Module, model: nn.Module) -> tuple[Tensor, Tensor]:
    """What a module reads and gives in one run of the model."""
    found: list[tuple[Tensor, Tensor]] = []
    handle = module.register_forward_hook(lambda _, args, out: found.append((args[0], out)))
    with torch.no_grad():
        model(**inputs(model))
    handle.remove()
    return found[0]


@pytest.mark.parametrize("entries", [ADAPTERS, ADAPTERS[::-1], [*ADAPTERS, UP]], ids=["two", "turned", "with lora"])
def test_parallel_adapters_share_one_softmax(entries: list[Entry]) -> None:
    model = attached(entries)
    block, plain = model.bert.encoder.layer[1], BERT.model().bert.encoder.layer[1]
    assert "self.attention(hidden_states" in inspect.getsource(type(block))  # what a gate reads is not unfolded
    x, _ = seen(block.intermediate.dense, model)
    _, out = seen(block, model)
    *first, one, two = shares(block.g_gate, x)
    up = plain.intermediate.dense(x)
    for share in first:
        up += share * (x @ block.ffn_up_lora.A.T @ block.ffn_up_lora.B.T)
    change = one * delta(block.ffn_adapter, x) + two * delta(block.ffn_adapter_2, x)
    torch.testing.assert_close(out, plain.output.LayerNorm(plain.output.dense(nn.functional.gelu(up)) + change + x))


def test_entries_of_one_method_on_two_sites_share_one_softmax() -> None:
    """Each example has its own share, so each has its own merged weights."""
    model = attached([{"method": "lora", "at": "q", "rank": 2, **GATE}, {"method": "lora", "at": "v", **GATE}])
    attention, plain = model.bert.encoder.layer[0].attention.self, BERT.model().bert.encoder.layer[0].attention.self
    x, _ = seen(attention.query, model)
    for example, (query, value) in zip(x.split(1), shares(attention.g_gate, x).unbind(1), strict=True):
        merged = BERT.model().bert.encoder.layer[0].attention.self
        merged.query.weight.data += query.item() * attention.query_lora.B @ attention.query_lora.A
        merged.value.weight.data += value.item() * attention.value_lora.B @ attention.value_lora.A
        torch.testing.assert_close(attention(example)[0], merged(example)[0])
        assert not torch.allclose(attention(example)[0], plain(example)[0])
