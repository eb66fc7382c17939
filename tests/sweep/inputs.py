"""Real inputs of any model, what it answers, and greedy generation."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from tests.sweep.build import Unbuilt
from tests.sweep.registry import Type

LENGTH, NEW = 7, 4
PLACE = re.compile(r"(image|audio|speech|video)_token_(id|index)")
ASKED = re.compile(r"features:? ([1-9]\d*)")
Inputs = dict[str, torch.Tensor]


def inputs_of(model: PreTrainedModel, kind: Type) -> Inputs:
    """The first inputs that the model answers to.  Unbuilt with what it said to the first where there are none."""
    said: list[str] = []
    for inputs in _candidates(model, kind):
        try:
            answer(model, inputs)
        except Exception as error:
            said.append(f"{type(error).__name__}: {' '.join(str(error).split())}")
        else:
            return inputs
    raise Unbuilt(f"the base answers no inputs of the sweep: {said[0][:160]}")


def _candidates(model: PreTrainedModel, kind: Type) -> Iterator[Inputs]:
    accepted = inspect.signature(type(model).forward).parameters
    decoder = _decoder(accepted)
    if model.main_input_name == "pixel_values":
        yield _pixels(model) | decoder
    if model.main_input_name in ("input_features", "input_values"):
        yield from ({**sound, **decoder} for sound in _sounds(model, model.main_input_name))
    text = _text(accepted, kind) | decoder
    yield from _placed(model, text, [*_seen(model, accepted), *_heard(model, accepted)])
    yield text
    if "pixel_values" in accepted:
        yield _pixels(model)
        yield text | _pixels(model)
    for name in ("input_features", "input_values"):
        if name in accepted:
            yield from ({**text, **sound} for sound in _sounds(model, name))


def _text(accepted: Mapping[str, inspect.Parameter], kind: Type) -> Inputs:
    """Two examples, the second shorter: padded on the left for a decoder, on the right else."""
    ids = torch.randint(4, 30, (2, LENGTH), generator=torch.Generator().manual_seed(5))
    needed = {name: ids for name, p in accepted.items() if name.endswith("_input_ids") and p.default is p.empty}
    if "attention_mask" not in accepted:
        return {"input_ids": ids, **needed}
    mask = torch.ones_like(ids)
    mask[1, slice(0, 2) if kind.kind == "decoder" else slice(LENGTH - 2, LENGTH)] = 0
    return {"input_ids": ids, "attention_mask": mask, **needed}


def _placed(model: PreTrainedModel, text: Inputs, senses: list[Inputs]) -> Iterator[Inputs]:
    """Text with a place for each feature of what is seen or heard beside it: as many as the model then asks for."""
    tokens = [value for name, value in _values(model.config) if PLACE.fullmatch(name) and isinstance(value, int)]
    width, examples = _value(model, "hidden_size", "d_model", default=1), len(text["input_ids"])
    for token, sense in product(tokens[:1], senses):
        try:
            answer(model, _with_places(text, token, 1) | sense)
        except Exception as error:
            asked = ASKED.search(str(error))
            counts = [int(asked[1]) // examples, int(asked[1]) // (examples * width)] if asked else []
            yield from (_with_places(text, token, count) | sense for count in counts)
        else:
            yield _with_places(text, token, 1) | sense


def _with_places(text: Inputs, token: int, count: int) -> Inputs:
    """The ids with so many of a token behind the second and nowhere else, which the mask shows."""
    ids, mask = text["input_ids"], text.get("attention_mask")
    (first, last), places = ids.masked_fill(ids == token, token - 1).tensor_split([2], dim=1), (len(ids), count)
    given = {**text, "input_ids": torch.cat([first, torch.full(places, token), last], 1)}
    if mask is None:
        return given
    first, last = mask.tensor_split([2], dim=1)
    return {**given, "attention_mask": torch.cat([first, torch.ones(places, dtype=torch.long), last], 1)}


def _seen(model: PreTrainedModel, accepted: Mapping[str, object]) -> Iterator[Inputs]:
    """A picture for each example, alone or one or two in a list, its size beside it where the model asks."""
    if "pixel_values" not in accepted:
        return
    pixels = _pixels(model)["pixel_values"]
    sizes = {"image_sizes": torch.tensor([pixels.shape[-2:]] * len(pixels))}
    for beside in ({}, sizes) if "image_sizes" in accepted else ({},):
        given = (pixels, pixels[:, None], torch.stack([pixels, pixels], 1))
        yield from ({"pixel_values": one, **beside} for one in given)


def _heard(model: PreTrainedModel, accepted: Mapping[str, object]) -> Iterator[Inputs]:
    """A spectrum for each example, with a mask over it where the model asks."""
    if "input_features" not in accepted:
        return
    for sound in _sounds(model, "input_features"):
        masks = [name for name in ("input_features_mask", "feature_attention_mask") if name in accepted]
        lengths = sound["input_features"].shape[-1], sound["input_features"].shape[1]
        yield from (
            {**sound, **{name: torch.ones(2, length, dtype=torch.long) for name in masks}} for length in lengths
        )


def _decoder(accepted: Mapping[str, object]) -> Inputs:
    if "decoder_input_ids" not in accepted:
        return {}
    return {"decoder_input_ids": torch.randint(4, 30, (2, 5), generator=torch.Generator().manual_seed(6))}


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
    frames = _value(model, "num_frames", default=0)
    sizes = (2, *([frames] if frames else []), channels, side, side)
    return {"pixel_values": torch.randn(sizes, generator=torch.Generator().manual_seed(7))}


def _sounds(model: PreTrainedModel, main: str) -> Iterator[Inputs]:
    """A wave, or its spectrum with the time last or first."""
    generator = torch.Generator().manual_seed(7)
    if main == "input_values":
        yield {main: torch.randn(2, 2000, generator=generator)}
    bins = _value(model, "num_mel_bins", "input_feat_per_channel", "feature_size", default=80)
    length = _value(model, "max_source_positions", "max_length", default=32)
    for time in (2 * length, length):
        yield {main: torch.randn(2, bins, time, generator=generator)}
        yield {main: torch.randn(2, time, bins, generator=generator)}


def answer(model: PreTrainedModel, inputs: Inputs, *, grad: bool = False) -> torch.Tensor:
    """The logits, or the first floating tensor of the output; what a forward draws is always the same."""
    with torch.set_grad_enabled(grad), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
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
    generate: Any = model.generate
    out = generate(**given, generation_config=options)
    return out.sequences, torch.stack(out.logits)
