"""Tiny random models from config alone: the only file that names architectures."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import transformers
from transformers import AutoConfig

from peftc.spec.schema import TASKS

VOCABULARY = 61
_ENCODER = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 40,
}  # fmt: skip
_DECODER = {**_ENCODER, "num_key_value_heads": 2, "attention_dropout": 0.1}
_TOWERS = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 64,
}  # fmt: skip
_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}


@dataclass(frozen=True, eq=False)
class Tiny:
    """One architecture: its config written out, its usual task, whether it is causal."""

    name: str
    settings: Mapping[str, Any]
    task: str | None
    causal: bool = False
    attentions: tuple[str | None, ...] = ("sdpa", "eager")

    def config(self, **changes: Any) -> dict[str, Any]:
        """The config as a spec writes it out."""
        shared = {"model_type": self.name, "vocab_size": VOCABULARY, "pad_token_id": 0, "num_labels": 3}
        return {**shared, **self.settings, **changes}

    def model(self, task: str | None = "usual", *, attention: str = "sdpa", seed: int = 0, **changes: Any) -> Any:
        """A model in eval mode whose weights depend on the seed alone, biases and norms moved off zero and one."""
        written = self.config(**changes)
        config = AutoConfig.for_model(written.pop("model_type"), **written)
        kind = auto(self.task if task == "usual" else task)
        return drawn(lambda: kind.from_config(config, attn_implementation=attention), seed)


def drawn(make: Callable[[], Any], seed: int) -> Any:
    """A model in eval mode, seeded, every parameter moved off its first values."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


ZOO = (
    Tiny("bert", _ENCODER, "sequence-classification"),
    Tiny("roberta", {**_ENCODER, "pad_token_id": 1}, "masked-lm"),
    Tiny("distilbert", {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}, "token-classification"),
    Tiny("electra", {**_ENCODER, "embedding_size": 16}, None),
    Tiny("gpt2", {**_GPT, "bos_token_id": 1, "eos_token_id": 2}, "causal-lm", causal=True),
    Tiny("llama", _DECODER, "causal-lm", causal=True),
    Tiny("qwen2", {**_DECODER, "num_key_value_heads": 1}, "causal-lm", causal=True),
    Tiny("qwen3", {**_DECODER, "head_dim": 12}, "causal-lm", causal=True),
)
# Models of further kinds, which the laws of every method are not held to: encoder-decoders, a mixture of experts.
FURTHER = (
    Tiny(
        "bart",
        {**_TOWERS, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2, "forced_eos_token_id": None},
        "seq2seq-lm",
    ),
    Tiny(
        "t5",
        {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0},
        "seq2seq-lm",
    ),
    Tiny("mixtral", {**_DECODER, "num_local_experts": 4}, "causal-lm", causal=True),
)
ENCODERS = tuple(tiny for tiny in ZOO if not tiny.causal)
DECODERS = tuple(tiny for tiny in ZOO if tiny.causal)


def sized(tiny: Tiny, *, heads: int, span: int, groups: int, depth: int, inner: int) -> Tiny:
    """The same architecture in other sizes: `groups` are the heads of keys and values, where it shares them."""
    sizes = {
        "hidden_size": heads * span, "n_embd": heads * span, "dim": heads * span, "num_hidden_layers": depth,
        "n_layer": depth, "n_layers": depth, "num_attention_heads": heads, "n_head": heads, "n_heads": heads,
        "num_key_value_heads": groups, "intermediate_size": inner, "hidden_dim": inner, "head_dim": span + 2,
    }  # fmt: skip
    changed = {key: sizes.get(key, value) for key, value in tiny.settings.items()}
    return Tiny(tiny.name, changed, tiny.task, tiny.causal)


def named(name: str) -> Tiny:
    return next(tiny for tiny in (*ZOO, *FURTHER) if tiny.name == name)


def auto(task: str | None) -> Any:
    """The Auto class of a task."""
    return getattr(transformers, f"AutoModelFor{TASKS[task]}" if task else "AutoModel")


@cache
def _cached(tiny: Tiny, attention: str) -> Any:
    return tiny.model(attention=attention)


def fresh(tiny: Tiny, attention: str = "sdpa") -> Any:
    """A copy of the architecture's usual model, for a test to change."""
    return copy.deepcopy(_cached(tiny, attention))


def inputs(model: Any, padded: bool = False, *, causal: bool = False, length: int = 9) -> dict[str, Any]:
    """Token ids, with a mask where padded: the second example lacks two tokens, the third five; decoders pad left."""
    ids = torch.randint(4, VOCABULARY, (3, length), generator=torch.Generator().manual_seed(length))
    if not padded:
        return {"input_ids": ids}
    missing = torch.tensor([0, 2, 5])[:, None]
    places = torch.arange(length)[None]
    mask = (places >= missing if causal else places < length - missing).long()
    return {"input_ids": torch.where(mask.bool(), ids, model.config.pad_token_id), "attention_mask": mask}
