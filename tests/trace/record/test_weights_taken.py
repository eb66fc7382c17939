"""What transformers is asked for beside the logits, it takes from calls: those modules stay calls, or are units."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, T5Config, T5ForConditionalGeneration, XGLMConfig, XGLMForCausalLM

import peftc
from peftc.trace.record.weights_taken import weights_taken
from tests.laws import spec
from tests.trace.nets import IDS, Block, made

METHODS: list[dict[str, Any]] = [
    {"method": "lora", "at": ["q", "v"], "rank": 2},
    {"method": "adapter", "variant": "houlsby", "bottleneck": 2},
]


def batch_and_heads_in_one_axis() -> PreTrainedModel:
    return XGLMForCausalLM(XGLMConfig(vocab_size=11, d_model=16, ffn_dim=12, num_layers=1, attention_heads=2))


def attention_inside_its_sublayer() -> PreTrainedModel:
    sizes: dict[str, Any] = {"d_model": 16, "d_kv": 4, "d_ff": 12, "num_heads": 2, "num_layers": 1}
    return T5ForConditionalGeneration(T5Config(vocab_size=11, **sizes))


@pytest.mark.parametrize("built", [batch_and_heads_in_one_axis, attention_inside_its_sublayer])
def test_the_weights_are_those_of_the_base(built: Any) -> None:
    base = built().eval()
    base.set_attn_implementation("eager")
    model = peftc.attach(copy.deepcopy(base), spec(METHODS))
    given = {"input_ids": IDS, **({"decoder_input_ids": IDS} if base.config.is_encoder_decoder else {})}
    wanted, found = (m(**given, output_attentions=True) for m in (base, model))
    names = [name for name in wanted if name.endswith("attentions") and wanted[name]]
    assert names
    torch.testing.assert_close([found[name] for name in names], [wanted[name] for name in names])


def test_only_models_of_transformers_say_so() -> None:
    assert weights_taken(made(Block)) == []
    assert weights_taken(attention_inside_its_sublayer())[:1] == ["encoder.block.0.layer.0"]
