"""A tiny model of any config class: sizes shrunk by the common names of attributes, sub-configs too."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel

from tests.sweep.registry import Type

LARGEST = 30_000_000
LAYERS = re.compile(
    r"(num_hidden_layers|n_layers?|num_layers|(num_)?(encoder|decoder)_layers|depth|num_blocks|attn_layers"
    r"|.*_(encoder|decoder)_layers|conf_num_hidden_layers)"
)
Size = int | Callable[[int], int]
RULES: tuple[tuple[str, Size], ...] = (
    (r"mamba_(n|num)_heads", 8),
    (r"(input|output)_channels|num_channels|in_channels|in_chans", lambda old: old),
    (r"(.*_)?num_key_value_heads|num_kv_heads|num_query_groups", 2),
    (r"(.*_)?vocab_size|.*_vocab|.*vocab_size_per.*|vocab_size_base", 128),
    (r".*_vocab_size_.*|entity_vocab_size", 128),
    (r"moe_topk|(moe_)?(num_experts_per_tok(en)?|top_?k)|moe_k", 2),
    (r"(n_|num_)?(routed_|local_)?experts|(moe_|n_|num_)+(routed_|local_)?experts|num_local_experts", 4),
    (r"n_group|topk_group|num_expert_group|n_groups|topk_groups", 1),
    (r"(index_)?n_heads?|(.*_)?(num_)?(attention_)?heads|num_attn_heads", 4),
    (r"(linear_num|lightning_n)_(key|value)_heads", 4),
    (r"index_head_dim", 16),
    (r"(.*_)?v_head_dim|qk_(nope|rope)_head_dim|linear_(key|value)_head_dim", 8),
    (r"qk_head_dim", 16),
    (r"mamba_(d_)?head(_dim)?|mamba_d_head|mamba_headdim", 8),
    (r"(.*_)?head_dim|d_kv|d_head|dim_head|attention_head_size|kv_channels|query_pre_attn_scalar", 8),
    (r"rotary_dim", lambda old: min(old, 4)),
    (r"(q|kv|o)_lora_rank|lora_rank", 16),
    (
        r"(.*_)?(intermediate|ffn_hidden|feed_forward)_size|(.*_)?ffn_dim|d_ff|dff|dim_ff|d_inner|n_inner|(.*_)?mlp_dim",
        48,
    ),
    (r"ssm_state_size|state_size|mamba_d_state|d_state", 8),
    (r"mamba_d_ssm", 64),
    (r"mamba_chunk_size|chunk_size", lambda old: min(old, 16)),
    (r"time_step_rank|mamba_dt_rank", 8),
    (
        r"(.*_)?hidden_(size|dim)|d_model|n_embd|(.*_)?(embedding_size|embed_dim|emb_dim)|dim|lru_width|word_embed_proj_dim",
        32,
    ),
    (r"(.*_)?emb_size|embedding_dim|(.*_)?output_dim|(.*_)?hidden_size_per_layer_input|projection_dim", 32),
    (r"max_(source|target)_positions|(.*)max_position_embeddings|n_positions|n_ctx|max_seq_len|model_max_length", 64),
    (
        r"sliding_window(_size)?|local_attention|attention_window(_size)?|attention_chunk_size|window_size",
        lambda old: min(old, 8),
    ),
    (r"image_size|crop_size|train_size", 32),
    (r"mm_tokens_per_image", 4),
    (r"(.*_)?patch_size", 8),
    (r"num_kv_shared_layers", 0),
    (r"first_k_dense_replace|max_window_layers|global_attn_every_n_layers", lambda old: min(old, 1)),
    (r"(attn|expert)_layer_period", lambda old: min(old, 2)),
    (r"(attn|expert)_layer_offset", lambda old: min(old, 1)),
)


UNSET: dict[str, Any] = {
    "num_key_value_heads": 4, "head_dim": 8, "vocab_size": 128, "n_routed_experts": 4, "n_shared_experts": 1,
    "num_experts_per_tok": 2, "moe_intermediate_size": 16, "audio_token_id": 100,
    "image_token_id": 101, "image_token_index": 101,
}  # fmt: skip
WINDOWS = {
    "embed_dim": 16, "hidden_size": 32, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "image_size": 64,
    "patch_size": 4, "pretrained_window_sizes": [0, 0],
}  # fmt: skip
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
TWICE_AS_WIDE = {"attention_hidden_size": 64, "attention_head_dim": 16}
SECTIONS = {"text_config": {"rope_parameters": {**ROPE, "mrope_section": [2, 1, 1]}}}
TILES = {"image_grid_pinpoints": [[32, 32]]}
OVERRIDES: dict[str, dict[str, Any]] = {
    "aria": {"projector_patch_to_query_dict": {"16": 8}},
    "bamba": {"attn_layer_indices": [1]},
    "big_bird": {"attention_type": "original_full"},  # what a short input turns it into, with modules of other classes
    "bigbird_pegasus": {"attention_type": "original_full"},
    "donut-swin": WINDOWS,
    "git": {"max_position_embeddings": 256},  # what it sees stands before the text
    **dict.fromkeys(("glm46v", "glm4v", "glm_ocr", "glmga", "paddleocr_vl", "qwen2_5_vl", "qwen2_vl"), SECTIONS),
    "glm4v_moe": {"text_config": {"rope_parameters": {**ROPE, "mrope_section": [1, 1, 0]}}},
    "glmasr": {"audio_config": {"intermediate_size": 128}},  # four frames of it make one
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "swin": WINDOWS,
    "swinv2": WINDOWS,
    "videomae": {"num_frames": 4},
    "voxtral": {"audio_config": {"intermediate_size": 128}},
    "vipllava": {"vision_feature_layers": [-2, -1]},
    "xmod": {"default_language": "en_XX"},
    "mamba2": {"head_dim": 16},
    "neomme": {"head_dim": 16},
    "reformer": {"is_decoder": False, "axial_pos_embds": False, "hash_seed": 0},
    "esm": {"pad_token_id": 1, "mask_token_id": 3},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "lilt": {"hidden_size": 48},
    "llava_next": TILES,
    "llava_next_video": TILES,
    "llava_onevision": TILES,
    "mobilebert": {"intra_bottleneck_size": 32, "embedding_size": 32},
    "layoutlmv3": {"coordinate_size": 6, "shape_size": 4, "visual_embed": False},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0}},
    "dots3_note_text": {"head_dim": 20},
    "blt": {
        "num_hidden_layers": 2, "encoder_config": {"hidden_size_global": 64},
        "decoder_config": {"hidden_size_global": 64}, "global_config": {"hidden_size": 64, "head_dim": 16},
    },
    "cohere_compass_text": {"rope_parameters": {"full_attention": ROPE}},
    "qwen4_exp_text": {
        "indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 4,
        "indexer_compress_ratio": 2, "hc_lowrank": 8,
    },
    "recurrent_gemma": {"num_hidden_layers": 3},
    "zamba": {"num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2, **TWICE_AS_WIDE},
    "zamba2": {
        "num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2, "hybrid_layer_ids": [1, 3],
        "n_mamba_heads": 8, **TWICE_AS_WIDE,
    },
}  # fmt: skip


class Unbuilt(Exception):
    """Why no tiny model can be made of a type."""


def tiny(kind: Type) -> PreTrainedModel:
    """A random model of a type, eval mode, fp32.  Unbuilt with the reason where that cannot be."""
    try:
        config = config_of(kind.name, kind.settings)
        build = _builder(kind)
        with torch.device("meta"):
            size = sum(p.numel() for p in build(config).parameters())
    except Exception as error:
        raise Unbuilt(_said(error)) from error
    if size > LARGEST:
        raise Unbuilt(f"{size / 1e6:.0f}M parameters after shrinking")
    try:
        torch.manual_seed(0)
        model: PreTrainedModel = build(config)
    except Exception as error:
        raise Unbuilt(_said(error)) from error
    _enliven(model)
    model.eval()
    return model


def _builder(kind: Type) -> Callable[[PreTrainedConfig], Any]:
    model = getattr(transformers, kind.model)
    return lambda config: model._from_config(copy.deepcopy(config))


def _said(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"


def _enliven(model: PreTrainedModel) -> None:
    """Move what starts at zero or one, and spread what starts near zero: a model whose parts all matter."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if not p.requires_grad or name.endswith(("A_log", "dt_bias", "D")):
                continue
            inputs = p[0].numel() if p.dim() == 4 else p.shape[-1] if p.dim() else 1  # of a convolution, or a matrix
            scale = 0.1 if p.dim() < 2 else min(0.3, inputs**-0.5)
            p.add_(torch.randn(p.shape, generator=generator).to(p.dtype) * scale)


def config_of(name: str, settings: Mapping[str, Any]) -> PreTrainedConfig:
    """The config of a type with everything small; a variant's settings stand as they are."""
    config: PreTrainedConfig = transformers.CONFIG_MAPPING[name]()
    shrink(config)
    small = _overridden(_settled(config.to_dict()), OVERRIDES.get(name, {}))
    return type(config).from_dict(_overridden(small, settings))


def _overridden(written: dict[str, Any], by: Mapping[str, Any]) -> dict[str, Any]:
    """A written config with other values, those of its parts too."""
    parts = {k: _overridden(written[k], v) for k, v in by.items() if isinstance(v, dict) and k in written}
    return {**written, **by, **parts}


def _settled(written: dict[str, Any]) -> dict[str, Any]:
    """A written config without what names layers that are gone, its rotary parts cut to its heads."""
    kept = {key: value for key, value in written.items() if key not in ("out_features", "out_indices", "stage_names")}
    if "mrope_section" in kept:
        kept["mrope_section"] = [2, 1, 1]
    return {key: _settled(value) if isinstance(value, dict) else value for key, value in kept.items()}


def shrink(config: PreTrainedConfig) -> None:
    """Every size of a config made small, in place."""
    layers, grouped = _layers(config), _grouped(config)
    values = dict(vars(config))
    different = layers.pop("per_layer_config", None)
    if different is not None:
        config.per_layer_config = {}
    for name, value in values.items():
        if isinstance(value, PreTrainedConfig):
            shrink(value)
        elif name in layers:
            setattr(config, name, layers[name])
        elif value is None and name in UNSET:
            setattr(config, name, UNSET[name])
        elif isinstance(value, int) and not isinstance(value, bool):
            setattr(config, name, _small(name, value, grouped))
    if different is not None:
        config.per_layer_config = different


def _grouped(config: PreTrainedConfig) -> bool:
    """Whether keys and values have fewer heads than queries."""
    values = vars(config)
    return values.get("num_key_value_heads") != values.get("num_attention_heads")


def _small(name: str, value: int, grouped: bool) -> int:
    if re.fullmatch(r".*_token_(id|index)|.*_token_ids", name):
        return value if value < 100 else 100 + sum(map(ord, name)) % 27
    if re.fullmatch(r"(.*_)?num_key_value_heads", name) and not grouped:
        return 4
    for pattern, size in RULES:
        if re.fullmatch(pattern, name) and value > 0:
            return min(value, size) if isinstance(size, int) else size(value)
    return value


def _layers(config: PreTrainedConfig) -> dict[str, Any]:
    """The layer counts, and lists that have one entry per layer: one layer of each sort, two at least."""
    values = vars(config)
    counts = {k: v for k, v in values.items() if isinstance(v, int) and v > 1 and LAYERS.fullmatch(k)}
    depths = set(counts.values())
    lists = {k: v for k, v in values.items() if isinstance(v, list | tuple) and len(v) in depths and len(v) > 1}
    if not lists:
        return dict.fromkeys(counts, 2)
    longest = max(map(len, lists.values()))
    keep = _first_of_each(list(zip(*(v for v in lists.values() if len(v) == longest), strict=True)))
    cut = {k: type(v)(v[i] for i in keep if i < len(v)) for k, v in lists.items()}
    return {**dict.fromkeys(counts, len(keep)), **cut, **_differing(config, keep)}


def _differing(config: PreTrainedConfig, keep: list[int]) -> dict[str, Any]:
    """What a config says of single layers, for the layers that are kept."""
    written = {int(k): v for k, v in (config.to_dict().get("per_layer_config") or {}).items()}
    kept = {new: written[old] for new, old in enumerate(keep) if old in written}
    small = {new: {k: _scaled(config, k, v) for k, v in said.items()} for new, said in kept.items()}
    return {"per_layer_config": small} if written else {}


def _scaled(config: PreTrainedConfig, name: str, value: Any) -> Any:
    """A layer's own size, in the proportion that it had to the other layers'."""
    usual = vars(config).get(name)
    if type(value) is not int or type(usual) is not int or not usual:
        return value
    return max(1, _small(name, usual, _grouped(config)) * value // usual)


def _first_of_each(rows: list[tuple[Any, ...]]) -> list[int]:
    seen: dict[str, int] = {}
    for index, row in enumerate(rows):
        seen.setdefault(repr([x for x in row if isinstance(x, str | bool)]), index)
    kept = sorted(seen.values())[:4]
    return kept if len(kept) > 1 else [0, 1]
