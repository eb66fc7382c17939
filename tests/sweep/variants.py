"""Further rows of a type: what released checkpoints have that their config class's defaults do not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def _rope(kind: str, **settings: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **settings}}


LONG = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 2.0, 4.0, 8.0]}
STABLE = {"do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": True}
DEBERTA = {
    "relative_attention": True, "max_relative_positions": -1, "position_biased_input": False, "type_vocab_size": 0,
}  # fmt: skip
BEIT = {"use_relative_position_bias": True, "use_mean_pooling": False, "use_mask_token": True}
VARIANTS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "albert": {"narrow embedding": {"embedding_size": 16}, "groups": {"num_hidden_groups": 2, "inner_group_num": 2}},
    "beit": {
        "relative bias": BEIT, "shared relative bias": {"use_shared_relative_position_bias": True},
        "absolute": {"use_absolute_position_embeddings": True},
    },
    "cohere": {"qk norm": {"use_qk_norm": True}},
    "convbert": {"groups": {"num_groups": 2, "embedding_size": 16}},
    "data2vec-audio": {"large": {"conv_bias": True}},
    "data2vec-vision": {"relative bias": BEIT},
    "deberta": {"released": {**DEBERTA, "pos_att_type": "c2p|p2c"}},
    "deberta-v2": {
        "v3": {
            **DEBERTA, "pos_att_type": "p2c|c2p", "position_buckets": 4, "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
        },
        "xlarge": {
            **DEBERTA, "pos_att_type": "p2c|c2p", "position_buckets": 4, "norm_rel_ebd": "layer_norm",
            "share_att_key": True, "conv_kernel_size": 3, "conv_act": "gelu",
        },
    },
    "deepseek_v2": {
        "lite": {"q_lora_rank": None}, "groups": {"topk_method": "group_limited_greedy", "n_group": 2, "topk_group": 1},
        "yarn": _rope("yarn", factor=4.0, mscale=0.7, mscale_all_dim=0.7, original_max_position_embeddings=16),
    },
    "deepseek_v3": {
        "yarn": _rope("yarn", factor=4.0, mscale=1.0, mscale_all_dim=1.0, original_max_position_embeddings=16),
        "dense": {"q_lora_rank": None, "first_k_dense_replace": 2}, "groups": {"n_group": 2, "topk_group": 1},
    },
    "dinov2": {"swiglu": {"use_swiglu_ffn": True}},
    "dinov3_vit": {"gated": {"use_gated_mlp": True, "key_bias": False, "hidden_act": "silu"}},
    "electra": {"narrow embedding": {"embedding_size": 16}},
    "ernie": {"task ids": {"use_task_id": True, "task_type_vocab_size": 3}},
    "esm": {
        "rotary": {"position_embedding_type": "rotary", "token_dropout": True, "emb_layer_norm_before": False},
        "absolute": {"position_embedding_type": "absolute", "token_dropout": True, "emb_layer_norm_before": True},
    },
    "falcon": {
        "alibi": {"alibi": True, "bias": True, "multi_query": False, "num_kv_heads": 4, "parallel_attn": False},
        "new decoder": {"new_decoder_architecture": True, "num_kv_heads": 2},
        "one norm": {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
        "sequential": {"parallel_attn": False, "bias": True},
        "heads": {"multi_query": False, "num_kv_heads": 4},
    },
    "funnel": {"whole": {"separate_cls": False, "truncate_seq": False, "pooling_type": "max"}},
    "gemma3_text": {"bidirectional": {"use_bidirectional_attention": True}},
    "glm4_moe": {"qk norm": {"use_qk_norm": True, "attention_bias": True}},
    "gpt2": {
        "upcast": {"reorder_and_upcast_attn": True, "scale_attn_by_inverse_layer_idx": True},
        "by layer": {"scale_attn_by_inverse_layer_idx": True},
    },
    "gpt_bigcode": {"heads": {"multi_query": False}, "fp32": {"attention_softmax_in_fp32": False}},
    "gpt_neox": {
        "sequential": {"use_parallel_residual": False, "rope_parameters": {
            "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0}},
        "without bias": {"attention_bias": False},
    },
    "granitemoehybrid": {"rope": {"position_embedding_type": "rope"}},
    "granite": {
        "multipliers": {
            "embedding_multiplier": 12.0, "attention_multiplier": 0.1, "residual_multiplier": 0.22,
            "logits_scaling": 8.0,
        },
    },
    "hubert": {"large": STABLE, "batch norm": {"conv_pos_batch_norm": True}},
    "llama": {
        "biases": {"attention_bias": True, "mlp_bias": True}, "linear": _rope("linear", factor=2.0),
        "dynamic": _rope("dynamic", factor=2.0),
        "yarn": _rope("yarn", factor=4.0, original_max_position_embeddings=16),
        "llama3": _rope(
            "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32
        ),
        "longrope": _rope("longrope", original_max_position_embeddings=16, factor=4.0, **LONG),
    },
    "longt5": {"tglobal": {"encoder_attention_type": "transient-global", "feed_forward_proj": "gated-gelu"}},
    "marian": {"unshared": {"share_encoder_decoder_embeddings": False, "decoder_vocab_size": 120,
                            "scale_embedding": True, "activation_function": "swish"}},
    "mistral": {"no window": {"sliding_window": None}, "wide heads": {"sliding_window": None, "head_dim": 16}},
    "mixtral": {"window": {"sliding_window": 8}},
    "mvp": {"prompt": {"use_prompt": True, "prompt_length": 4, "prompt_mid_dim": 16}},
    "mpt": {"clip": {"attn_config": {"clip_qkv": 6.0, "alibi_bias_max": 16}}},
    "olmo": {"clip": {"clip_qkv": 8.0}},
    "olmoe": {"clip": {"clip_qkv": 8.0, "norm_topk_prob": True}},
    "opt": {
        "post norm": {"do_layer_norm_before": False, "word_embed_proj_dim": 16},
        "galactica": {"enable_bias": False, "layer_norm_elementwise_affine": False, "activation_function": "gelu"},
    },
    "phi": {"qk norm": {"qk_layernorm": True}},
    "phi3": {
        "longrope": {"original_max_position_embeddings": 16, "sliding_window": 8, **_rope(
            "longrope", original_max_position_embeddings=16, **LONG)},
        "partial": _rope("default", partial_rotary_factor=0.5),
    },
    "phimoe": {"biases": {"attention_bias": True, "lm_head_bias": True}},
    "qwen2": {
        "windows": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1, "layer_types": None},
    },
    "qwen3": {"bias": {"attention_bias": True}},
    "qwen3_moe": {"dense": {"mlp_only_layers": [0], "norm_topk_prob": True}},
    "rembert": {"embeddings": {"input_embedding_size": 16, "output_embedding_size": 48}},
    "roformer": {"rotary value": {"rotary_value": True, "embedding_size": 16}},
    "sew": {"large": {"feat_extract_norm": "layer"}},
    "stablelm": {
        "parallel": {"use_parallel_residual": True, "qk_layernorm": True}, "bias": {"use_qkv_bias": True},
    },
    "starcoder2": {"window": {"sliding_window": 8}},
    "swin": {"absolute": {"use_absolute_embeddings": True}},
    "swinv2": {"pretrained": {"pretrained_window_sizes": [3, 3]}},
    "t5": {"gated": {"feed_forward_proj": "gated-gelu", "d_kv": 16}},
    "wav2vec2": {
        "large": STABLE, "attention adapter": {**STABLE, "adapter_attn_dim": 8},
    },
    "wav2vec2-conformer": {
        "rotary": {"position_embeddings_type": "rotary", "feat_extract_norm": "layer"},
        "relative": {"position_embeddings_type": "relative", "feat_extract_norm": "layer"},
    },
    "wavlm": {"large": STABLE},
    "xlm": {"languages": {"n_langs": 3, "use_lang_emb": True, "sinusoidal_embeddings": True, "gelu_activation": False}},
    "xmod": {"pre norm": {"pre_norm": True, "adapter_layer_norm": True}},
    "zamba2": {"adapters": {"use_shared_attention_adapter": True, "use_mem_rope": True}},
}  # fmt: skip
