"""Real inputs of any model, what it answers, and greedy generation."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from tests.sweep.registry import Type

LENGTH, NEW = 7, 4
Inputs = dict[str, torch.Tensor]


def inputs_of(model: PreTrainedModel, kind: Type) -> Inputs:
    """Two examples; in text the second is shorter, padded on the left for a decoder and on the right else."""
    accepted = inspect.signature(type(model).forward).parameters
    main = model.main_input_name
    if main == "pixel_values":
        return _pixels(model)
    if main in ("input_features", "input_values"):
        return {**_sound(model, main), **_decoder(model, accepted)}
    length = LENGTH
    ids = _ids(model, length)
    found = {"input_ids": ids}
    if "attention_mask" in accepted:
        mask = torch.ones_like(ids)
        edge = slice(0, 2) if kind.kind == "decoder" else slice(length - 2, length)
        mask[1, edge] = 0
        found["attention_mask"] = mask
    if kind.kind == "other" and "pixel_values" in accepted:
        found |= _pixels(model)
    return {**found, **_decoder(model, accepted)}


def _ids(model: PreTrainedModel, length: int) -> torch.Tensor:
    count = model.get_input_embeddings().weight.shape[0]
    return torch.randint(4, min(90, count), (2, length), generator=torch.Generator().manual_seed(5))


def _decoder(model: PreTrainedModel, accepted: Any) -> Inputs:
    if "decoder_input_ids" not in accepted:
        return {}
    return {"decoder_input_ids": torch.randint(4, 90, (2, 5), generator=torch.Generator().manual_seed(6))}


def _values(config: Any) -> Iterator[tuple[str, Any]]:
    """Attributes of a config and of its sub-configs, the outermost first."""
    yield from vars(config).items()
    for name in config.sub_configs:
        inner = getattr(config, name, None)
        if inner is not None:
            yield from _values(inner)


def _value(model: PreTrainedModel, *names: str, default: int) -> int:
    sizes = ((name, value) for name, value in _values(model.config) if isinstance(value, int | list | tuple))
    found = dict(reversed(list(sizes)))
    for name in names:
        if name in found:
            value = found[name]
            return int(value[0] if isinstance(value, list | tuple) else value)
    return default


def _pixels(model: PreTrainedModel) -> Inputs:
    side, channels = _value(model, "image_size", default=32), _value(model, "num_channels", default=3)
    return {"pixel_values": torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(7))}


def _sound(model: PreTrainedModel, main: str) -> Inputs:
    generator = torch.Generator().manual_seed(7)
    if main == "input_values":
        return {main: torch.randn(2, 2000, generator=generator)}
    bins = _value(model, "num_mel_bins", "input_feat_per_channel", "feature_size", default=80)
    return {main: torch.randn(2, bins, 2 * _value(model, "max_source_positions", default=64), generator=generator)}


def answer(model: PreTrainedModel, inputs: Inputs, *, grad: bool = False) -> torch.Tensor:
    """The logits, or the first floating tensor of the output."""
    with torch.set_grad_enabled(grad):
        out = model(**inputs)
    floating = (v for v in out.values() if isinstance(v, torch.Tensor) and v.is_floating_point())
    found: torch.Tensor = out["logits"] if "logits" in out else next(floating)
    return found[:, -3:] if found.dim() == 3 else found


def generated(model: PreTrainedModel, inputs: Inputs, *, cache: bool) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Greedy tokens and the scores of each step; None where the model cannot generate."""
    if not model.can_generate():
        return None
    given = {k: v for k, v in inputs.items() if not k.startswith("decoder_")}
    options = GenerationConfig(
        max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, use_cache=cache, return_dict_in_generate=True,
        output_logits=True, pad_token_id=0, eos_token_id=[1], bos_token_id=2, decoder_start_token_id=2,
    )  # fmt: skip
    out: Any = model.generate(**given, generation_config=options)
    return out.sequences, torch.stack(out.logits)
