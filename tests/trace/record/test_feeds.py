"""What a model reads is found by its signature and config: ids, pixels and sound, alone or together."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    VoxtralRealtimeEncoder,
    VoxtralRealtimeEncoderConfig,
)

from peftc import attach
from peftc.trace import trace_model
from peftc.trace.record.calls import record
from peftc.trace.record.feeds import POINTS, feed
from peftc.trace.record.inputs import SCENARIOS, Scenario, inputs
from peftc.trace.record.meta import shapes_only, values_as
from peftc.trace.record.model import from_config
from tests.laws import spec

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
IMAGE = {**SIZES, "image_size": 16, "patch_size": 8}
TEXT = {**SIZES, "vocab_size": 61, "max_position_embeddings": 40}
CROSS = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "vocab_size": 61, "pad_token_id": 0,
    "max_source_positions": 20, "max_target_positions": 24, "num_mel_bins": 8, "decoder_start_token_id": 1,
}  # fmt: skip
CLIP = {"projection_dim": 16, "text_config": TEXT, "vision_config": IMAGE}
MODELS: dict[str, tuple[str | None, dict[str, Any]]] = {
    "vit": (None, IMAGE),
    "clip": (None, CLIP),
    "whisper": ("speech-seq2seq", CROSS),
    "wav2vec2": (None, {**SIZES, "conv_dim": [8] * 7, "num_conv_pos_embeddings": 4}),
    "audio-spectrogram-transformer": (None, {**IMAGE, "max_length": 40, "num_mel_bins": 24}),
    "speech_to_text": ("speech-seq2seq", {**CROSS, "input_feat_per_channel": 8, "conv_channels": 16}),
    "switch_transformers": ("seq2seq-lm", {
        "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4,
        "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1, "num_experts": 2, "vocab_size": 61}),
    "cpmant": ("causal-lm", {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "dim_head": 8, "dim_ff": 48,
        "prompt_length": 4, "vocab_size": 61}),
    "llava": ("image-text-to-text", {"text_config": {**TEXT, "model_type": "llama"}, "vision_config": {
        **IMAGE, "model_type": "clip_vision_model"}}),
}  # fmt: skip


def made(name: str) -> Any:
    task, settings = MODELS[name]
    return from_config(AutoConfig.for_model(name, **settings), task)


@pytest.mark.parametrize(
    ("name", "inputs", "shape"),
    [
        ("vit", ["pixel_values"], [(2, 3, 16, 16), (3, 3, 32, 32)]),
        ("clip", ["input_ids", "pixel_values"], [(2, 7), (3, 11)]),
        ("whisper", ["input_features"], [(2, 8, 40), (3, 8, 40)]),
        ("wav2vec2", ["input_values"], [(2, 2960), (3, 4240)]),
        ("audio-spectrogram-transformer", ["input_values"], [(2, 40, 24), (3, 40, 24)]),
        ("speech_to_text", ["input_features"], [(2, 72, 8), (3, 104, 8)]),
        ("llava", ["input_ids"], [(2, 7), (3, 11)]),
    ],
)
def test_what_a_model_reads(name: str, inputs: Sequence[str], shape: list[tuple[int, ...]]) -> None:
    found = feed(made(name))
    assert [i.name for i in found.inputs] == inputs
    assert [found.inputs[0].shape(point) for point in POINTS] == shape


@pytest.mark.parametrize("name", ["whisper", "wav2vec2", "speech_to_text", "audio-spectrogram-transformer"])
def test_a_model_in_half_precision_sees_and_hears_in_it(name: str) -> None:
    usual, half = feed(made(name)), feed(made(name).to(torch.bfloat16))
    assert [i.shape(point) for i in half.inputs for point in POINTS] == [
        i.shape(point) for i in usual.inputs for point in POINTS
    ]
    assert half.made(POINTS[0], torch.device("meta"), mask=False)[half.inputs[0].name].dtype is torch.bfloat16


def listening() -> Any:
    """A decoder that attends to the states of an encoder which is not part of it."""
    return from_config(AutoConfig.for_model("bert", **TEXT, is_decoder=True, add_cross_attention=True), "causal-lm")


def test_a_decoder_in_half_precision_hears_an_encoder_in_it() -> None:
    model = listening().to(torch.bfloat16)
    given = inputs(model, SCENARIOS[0], POINTS[0], running)
    assert given is not None and given["encoder_hidden_states"].dtype is torch.bfloat16
    assert record(model, SCENARIOS[0], POINTS[0], {}) is not None


def test_both_towers_of_a_model_for_pictures_and_text() -> None:
    trace = trace_model(made("clip"))
    assert trace.towers() == ("text", "vision")
    assert all({"q", "k", "v", "o", "attention", "ffn"} <= set(layer.site_names()) for layer in trace.layers)


def test_an_encoder_of_sound_and_its_decoder() -> None:
    trace = trace_model(made("whisper"))
    assert trace.towers() == ("encoder", "decoder")
    assert all("cross.attention" in layer.site_names() for layer in trace.layers if layer.tower == "decoder")


@contextmanager
def running() -> Iterator[None]:
    with shapes_only(), values_as(0):
        yield


@pytest.mark.parametrize("name", ["whisper", "switch_transformers"])
def test_a_cache_is_given_with_what_the_encoder_said(name: str) -> None:
    found = [inputs(made(name), s, POINTS[0], running) for s in SCENARIOS if s.cache != "none" and not s.alone]
    assert all(given is not None and "encoder_outputs" in given for given in found)


def test_a_model_that_wants_the_ids_of_its_cache_once_more() -> None:
    model, point = made("cpmant"), POINTS[0]
    recording = record(model, Scenario(mask=False, cache="single"), point, {})
    assert recording is not None
    queries = [recording.calls[m].named["hidden_q"] for m in recording.attending]
    assert [tuple(q.shape[:2]) for q in queries] == [(point.batch, 1)] * 2


class Refusing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, device="meta"))

    def forward(self, input_ids: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        raise ValueError(f"no {pixel_values.dim()}")


def test_a_model_that_refuses_all_says_why() -> None:
    with pytest.raises(ValueError, match="no 4"):
        feed(Refusing())


def test_a_decoder_that_listens_is_called_with_an_encoder_s_words_and_without() -> None:
    model = listening()
    calls = [
        r.calls[model.get_submodule("bert.encoder.layer.0")]
        for s in SCENARIOS
        if (r := record(model, s, POINTS[0], {}))
    ]
    heard = [call.named.get("encoder_hidden_states") for call in calls]
    assert [None if h is None else tuple(h.shape) for h in heard] == [(2, 9, 32)] * 8 + [None] * 8


class Configless(Refusing):
    def forward(self, input_ids: torch.Tensor, encoder_hidden_states: Any = None) -> torch.Tensor:
        return input_ids * self.scale


def test_a_model_without_a_config_listens_to_no_encoder() -> None:
    assert inputs(Configless(), SCENARIOS[0], POINTS[0], running) is not None


class Unbound(Refusing):
    def forward(self, input_ids: torch.Tensor, pixel_values: torch.Tensor | None = None) -> torch.Tensor:
        if pixel_values is None:
            seen = self.scale
        return input_ids * seen


def test_inputs_for_which_a_forward_forgets_a_variable_are_not_its_own() -> None:
    assert [given.name for given in feed(Unbound()).inputs] == ["input_ids"]


def test_without_a_mask_and_a_cache_a_model_is_given_none() -> None:
    config = AutoConfig.for_model("llama", **TEXT)
    model = from_config(config, "causal-lm")
    recording = record(model, Scenario(mask=False, cache="none"), POINTS[0], {})
    assert recording is not None and recording.attending
    assert all(recording.calls[module].named.get("attention_mask") is None for module in recording.attending)


class Hearing(Refusing):
    def forward(self, input_features: torch.Tensor, input_features_mask: torch.Tensor | None = None) -> torch.Tensor:
        heard = input_features if input_features_mask is None else input_features * input_features_mask
        return heard * self.scale


class Listening(Hearing):
    def forward(self, input_features: torch.Tensor, input_features_mask: torch.Tensor | None = None) -> torch.Tensor:
        assert input_features_mask is not None
        return super().forward(input_features, input_features_mask)


def test_what_is_heard_comes_with_a_mask_of_its_own_always_where_it_must() -> None:
    optional, needed = feed(Hearing()), feed(Listening())
    assert ([i.name for i in optional.inputs], optional.mask) == (["input_features"], "input_features_mask")
    assert ([i.name for i in needed.inputs], needed.mask) == (["input_features", "input_features_mask"], None)
    given = needed.made(POINTS[0], torch.device("cpu"), mask=False)
    assert bool((given["input_features_mask"] == 1).all())
    assert given["input_features_mask"].shape == given["input_features"].shape[:2]


def test_what_is_heard_comes_without_a_mask_that_covers_what_is_made_of_it() -> None:
    """Two frames make one position, and the mask is over positions: a run in which nothing is hidden leaves it out."""
    config: Any = {**SIZES, "head_dim": 8, "num_mel_bins": 8}
    encoder = VoxtralRealtimeEncoder(VoxtralRealtimeEncoderConfig(**config))
    assert all("q" in layer.site_names() for layer in trace_model(encoder).layers)


class Twice(Refusing):
    def forward(  # type: ignore[override]
        self,
        pixel_values: torch.Tensor,
        other_input_ids: torch.Tensor,
        input_ids: torch.Tensor,
        more_input_ids: Any = None,
    ) -> torch.Tensor:
        return self.scale * pixel_values.sum() + (other_input_ids + input_ids).sum()


def test_further_ids_that_must_be_given() -> None:
    found = feed(Twice())
    assert [given.name for given in found.inputs] == ["input_ids", "other_input_ids", "pixel_values"]
    assert found.ids == "input_ids"


@pytest.mark.parametrize("start", [{"decoder_start_token_id": 0}, {}], ids=["shifted", "given"])
def test_a_classifier_of_pairs_reads_as_many_ids_in_both_towers(start: dict[str, int]) -> None:
    """Its decoder reads the encoder's ids again, or as many of its own; its head looks for where they end."""
    settings = {"d_kv": 8, "d_model": 32, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 61, **start}
    base = AutoModelForSequenceClassification.from_config(AutoConfig.for_model("t5", **settings)).eval()
    model = attach(copy.deepcopy(base), spec([{"method": "lora", "at": ["q", "v"], "rank": 2}]))
    ids = torch.tensor([[5, 6, 7, 1], [8, 9, 4, 1]])
    own = {} if start else {"decoder_input_ids": ids}
    torch.testing.assert_close(model(input_ids=ids, **own).logits, base(input_ids=ids, **own).logits)
    model(input_ids=ids, **own).logits.sum().backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if name.endswith("lora.B"))
