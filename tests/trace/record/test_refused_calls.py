"""A base that fails on some calls beside a cache, as one whose first layer says that nothing is in it."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
from transformers import MiniMaxConfig, MiniMaxForCausalLM

import peftc
from peftc.plan import resolve
from peftc.trace import trace_model
from tests.laws import perturbed, spec

LORA = {"method": "lora", "at": ["q", "v"], "rank": 2}
REFUSED = "padded, cache: filled"


@cache
def model() -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 20, "num_attention_heads": 2, "head_dim": 8}
    layers: dict[str, Any] = {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]}
    config = MiniMaxConfig(**sizes, **layers, num_key_value_heads=1, vocab_size=50, num_local_experts=2, block_size=4)
    return MiniMaxForCausalLM(config).eval()


def test_they_are_named_and_left_out() -> None:
    trace = trace_model(model())
    assert list(trace.refused) == [REFUSED]
    (note,) = (note for note in resolve(spec([LORA]), trace).notes if REFUSED in note)
    assert note.startswith("MiniMaxForCausalLM fails on example inputs: RuntimeError: ")
    assert note.endswith(f"; so the calls that are {REFUSED} were not traced")


def test_what_it_does_without_them_holds() -> None:
    attached = perturbed(peftc.attach(copy.deepcopy(model()), spec([LORA, {"method": "adapter", "bottleneck": 2}])))
    ids = torch.tensor([[5, 6, 7], [8, 9, 5]])
    cached, whole = (
        attached.generate(ids, max_new_tokens=5, do_sample=False, eos_token_id=None, use_cache=kept)
        for kept in (True, False)
    )
    assert torch.equal(cached, whole) and not torch.equal(whole, ids)
