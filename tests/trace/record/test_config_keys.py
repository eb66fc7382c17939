"""A key of a written config that no code of the model asks for is named; one that changes it is not."""

from __future__ import annotations

from typing import Any

import pytest

from peftc.spec.schema import Base
from peftc.trace.record.config_keys import dead_keys


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("llama", {"rope_theta": 1e6, "torch_dtype": "bfloat16", "rope_scaling": None}),  # taken by every config
        ("qwen3_moe", {"head_dim": 16}),  # asked for with getattr
        ("deberta-v2", {"position_buckets": 8, "norm_rel_ebd": "layer_norm", "share_att_key": True}),
        ("gpt_neox", {"rotary_pct": 0.5, "rotary_emb_base": 500}),  # another name of a part of another key
        ("modernbert", {"global_attn_every_n_layers": 2}),
        ("bert", {"num_labels": 3, "gradient_checkpointing": False}),
        ("t5", {"decoder_start_token_id": 0}),  # of generation
    ],
)
def test_keys_that_are_asked_for(kind: str, keys: dict[str, Any]) -> None:
    assert dead_keys(Base(config={"model_type": kind, **keys})) == []


@pytest.mark.parametrize(
    ("kind", "key", "meant"),
    [
        ("llama", "hidden_sise", "hidden_size"),
        ("bert", "num_hidden_layer", "num_hidden_layers"),
        ("bert", "num_layers", "num_hidden_layers"),  # not num_labels
        ("bert", "num_heads", "num_attention_heads"),
        ("gpt2", "n_ctx", ""),
        ("gemma2", "hidden_act", "hidden_activation"),
        ("bert", "x.*|(", ""),
    ],
)
def test_keys_that_nothing_asks_for(kind: str, key: str, meant: str) -> None:
    assert dead_keys(Base(config={"model_type": kind, key: 2, "vocab_size": 50})) == [(key, meant)]
