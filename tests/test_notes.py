"""What a plan says where a gate, or what a method stands on, is other than it looks."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor, nn
from transformers import (
    BartConfig,
    BartModel,
    BertConfig,
    BertForSequenceClassification,
    FalconConfig,
    FalconModel,
    LlamaConfig,
    LlamaModel,
    PreTrainedModel,
    Qwen2MoeConfig,
    Qwen2MoeModel,
    SwinConfig,
    SwinModel,
    T5Config,
    T5Model,
)

from peftc.errors import PeftcError
from peftc.plan import resolve
from peftc.trace import trace_model
from tests.laws import spec
from tests.trace.nets import Block, Net, made
from tests.trace.tracer.test_devices import ApartBlock, GuardedBlock

TINY: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 20}
SWIN = SwinConfig(embed_dim=8, depths=[1], num_heads=[2], image_size=32, patch_size=2, window_size=4)


def notes(model: Any, *entries: dict[str, Any], train: list[str] | None = None) -> tuple[str, ...]:
    written = spec([*entries], train=train) if train else spec([*entries])
    return resolve(written, trace_model(model)).notes


def test_a_gate_that_averages_over_a_part_of_an_example() -> None:
    windows = "an example is several rows in {}, such as windows: a sequence gate is one number for each of them"
    gated = {"method": "lora", "at": "q", "rank": 2, "gate": "sequence"}
    inert = "lora: where a gate stands, alpha and scaling are inert: it replaces them"
    assert notes(SwinModel(SWIN), gated) == (inert, windows.format("SwinAttention"))
    assert notes(SwinModel(SWIN), {**gated, "gate": "token"}) == (inert,)
    adapter = {"method": "adapter", "bottleneck": 2, "gate": "sequence"}
    assert notes(SwinModel(SWIN), adapter) == ()
    assert notes(made(Block), adapter) == ()


def test_a_map_that_trains_whole_below_an_addition() -> None:
    model: PreTrainedModel = BertForSequenceClassification(BertConfig(**TINY, vocab_size=50))
    lora = {"method": "lora", "modules": ["classifier", "bert.pooler.dense"]}
    assert notes(model, lora, train=["head"]) == ("lora stands on what trains whole by itself: classifier.weight",)
    assert notes(model, lora, {"method": "bitfit"}) == ()


def test_where_nothing_reads_another_sequence_a_hint_says_so() -> None:
    model: PreTrainedModel = BertForSequenceClassification(BertConfig(**TINY, vocab_size=50))
    with pytest.raises(PeftcError, match="; no attention here reads another sequence"):
        notes(model, {"method": "lora", "at": "cross.v"})


def test_what_a_tower_has_beside_its_blocks_is_left_out() -> None:
    sizes: dict[str, Any] = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 50}
    bart = BartModel(BartConfig(**sizes, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=20))
    tower = {"method": "norm", "towers": "decoder"}
    assert notes(bart, tower) == ("norm: leaves out decoder.layernorm_embedding: in no layer",)
    assert notes(bart, {**tower, "layers": "0"}) == notes(bart, {"method": "norm"}) == ()


class Towers(Net):
    """Two towers, of which one attends in a way that has no trace, or has one that no prefix can join."""

    def __init__(self, kind: type[Block] = GuardedBlock) -> None:
        super().__init__([Block(), Block()])
        self.others = nn.ModuleList([kind(), kind()])

    def forward(self, ids: Tensor) -> Tensor:
        x = super().forward(ids)
        for block in self.others:
            x = block(x)
        return x


def test_a_tower_that_is_left_out_is_noted() -> None:
    why = "not traced: Guarded: it enters torch.autocast, or asks for it, which a trace does not record"
    assert notes(Towers(), {"method": "lora"}) == (f"lora: no q, v in layers 0-1 of the others; {why}",)
    assert notes(Towers(), {"method": "lora", "towers": "blocks"}) == ()


def test_where_a_tower_can_have_no_prefix_a_hint_names_the_one_that_can() -> None:
    with pytest.raises(PeftcError, match=r"no prefix can join it; towers: \[blocks\] leaves the others out"):
        notes(Towers(ApartBlock), {"method": "prefix"})
    assert notes(Towers(ApartBlock), {"method": "prefix", "towers": ["blocks"]})
    with pytest.raises(PeftcError, match=r"no prefix can join it$"):
        notes(Towers(ApartBlock), {"method": "prefix", "towers": "others"})


def test_where_a_tower_has_no_site_a_hint_names_the_one_that_has() -> None:
    sizes: dict[str, Any] = {"d_model": 16, "d_kv": 8, "d_ff": 20, "num_layers": 2, "num_heads": 2, "vocab_size": 50}
    with pytest.raises(PeftcError) as raised:
        notes(T5Model(T5Config(**sizes)), {"method": "lora", "at": "cross.v", "towers": "encoder"})
    message = str(raised.value)
    assert "layer 0 of the encoder, a T5Block, has no site 'cross.v'" in message
    assert message.endswith("ffn_up, ffn_down, ffn; 'cross.v' is in layers 0-1 of the decoder")


def test_where_a_tower_has_fewer_layers_a_hint_names_the_one_that_has_them() -> None:
    sizes: dict[str, Any] = {"d_model": 16, "d_kv": 8, "d_ff": 20, "num_heads": 2, "vocab_size": 50}
    model = T5Model(T5Config(**sizes, num_layers=1, num_decoder_layers=3))
    lora = {"method": "lora", "at": "cross.v"}
    with pytest.raises(PeftcError, match=r"(?s)encoder: there is no layer 2; .*: towers: \[decoder\] leaves the"):
        notes(model, {**lora, "layers": "1-2"})
    assert notes(model, {**lora, "layers": "1-2", "towers": "decoder"}) == ()
    with pytest.raises(PeftcError) as raised:
        notes(model, {**lora, "layers": "8"})
    assert "leaves the others out" not in str(raised.value)


def test_where_an_expert_is_shared_the_others_are_named() -> None:
    sizes = {**TINY, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 12, "num_experts": 4}
    model = Qwen2MoeModel(Qwen2MoeConfig(**sizes, vocab_size=50, num_key_value_heads=2))
    said = "lora: ffn_up, ffn_down are those of mlp.shared_expert alone; mlp.experts beside it stays as it is"
    assert notes(model, {"method": "lora", "at": ["q", "ffn_up", "ffn_down"]}) == (said,)
    assert notes(model, {"method": "lora"}) == notes(model, {"method": "adapter"}) == ()


def test_where_keys_are_repeated_first_a_prefix_is_as_wide_as_all_of_them() -> None:
    sizes = {**TINY, "vocab_size": 50, "num_attention_heads": 4}
    prefix = {"method": "prefix", "length": 2}
    falcon = FalconModel(FalconConfig(**sizes, new_decoder_architecture=True, num_kv_heads=2))
    said = "FalconAttention attends with keys of 16 numbers, of which k makes 8: prefix is as wide as all of them"
    assert said in notes(falcon, prefix)
    llama = LlamaModel(LlamaConfig(**sizes, num_key_value_heads=2))
    assert not any("attends with" in note for note in notes(llama, prefix))


class Adding(Block):
    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        x += 1
        return super().forward(x, **kwargs)


def test_what_a_block_changes_in_place_stays_its_callers() -> None:
    said = ("Adding changes x in place: in an artifact its caller's stays as it was",)
    assert notes(made(Adding), {"method": "lora", "at": "q"}) == said
