"""An attribute that is None or a bool while a unit is traced is read again at run time, as any number is."""

from __future__ import annotations

import inspect
import sys
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

import peftc
from peftc.trace.tracer.none_sources import absent
from tests.laws import additions, answer, move, spec
from tests.zoo import VOCABULARY

SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "intermediate_size": 48, "max_position_embeddings": 40, "pad_token_id": 0,
}  # fmt: skip


class Windowed(nn.Module):
    """Calls a function with attributes that are None or a bool, of its own and of its config."""

    def __init__(self) -> None:
        super().__init__()
        self.window, self.size, self.exact = None, 3, False
        self.config = SimpleNamespace(cap=None)

    def forward(self, other: Any) -> dict[str, str]:
        local = None
        return seen(self, window=self.window, cap=self.config.cap,
                    size=self.size, exact=self.exact, local=local, other=other.window, none=None)  # fmt: skip


def seen(module: nn.Module, **keywords: Any) -> dict[str, str]:
    return absent(sys._getframe(1), keywords, {module: "inner"})


def test_the_source_of_what_is_none() -> None:
    found = Windowed()(Windowed())
    assert found == {"window": "self.inner.window", "cap": "self.inner.config.cap", "exact": "self.inner.exact"}


def test_layers_with_and_without_a_window_are_one_class() -> None:
    kinds = ["full_attention", "sliding_attention", "full_attention"]
    config = AutoConfig.for_model(
        "qwen3", num_hidden_layers=3, layer_types=kinds, use_sliding_window=True, sliding_window=3, **SIZES
    )
    base = AutoModelForCausalLM.from_config(config).eval()
    ids = {"input_ids": torch.arange(4, 24).reshape(2, 10)}
    before = answer(base, ids)
    model = peftc.attach(base, spec([{"method": "lora", "rank": 2}]))
    move(additions(model))
    windows = [layer.self_attn.sliding_window for layer in model.model.layers]
    (unit,) = {type(layer.self_attn) for layer in model.model.layers}
    assert windows == [None, 3, None]
    assert "sliding_window=self.sliding_window," in inspect.getsource(unit)
    assert not torch.allclose(answer(model, ids), before)
    with model.disable_adapter():
        assert torch.equal(answer(model, ids), before)
    merged = AutoModelForCausalLM.from_config(config).eval()
    merged.load_state_dict(model.state_dict(), strict=False)
    for layer, plain in zip(model.model.layers, merged.model.layers, strict=True):
        for name in ("q_proj", "v_proj"):
            lora = getattr(layer.self_attn, f"{name}_lora")
            getattr(plain.self_attn, name).weight.data += lora.scale * lora.B.data @ lora.A.data
    torch.testing.assert_close(answer(model, ids), answer(merged, ids))
