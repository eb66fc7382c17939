"""Example inputs for a whole model, on the meta device, from the names of its forward's parameters."""

from __future__ import annotations

import copy
import inspect
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput


@dataclass(frozen=True)
class Point:
    """Example sizes: every dimension differs from the other point's.  `source` is the length of an encoder's input."""

    batch: int
    length: int
    past: int
    source: int


POINTS = (Point(batch=2, length=7, past=6, source=9), Point(batch=3, length=11, past=5, source=13))


@dataclass(frozen=True)
class Scenario:
    """How the outer model is called: padded or not; no cache, an empty one, a filled one, or one token at a time."""

    mask: bool
    cache: Literal["none", "empty", "filled", "single"]


SCENARIOS = (
    Scenario(mask=True, cache="none"),
    Scenario(mask=False, cache="none"),
    Scenario(mask=True, cache="empty"),
    Scenario(mask=True, cache="filled"),
    Scenario(mask=True, cache="single"),
    Scenario(mask=False, cache="filled"),
)


class Runner(Protocol):
    """Opens the block in which a model is run."""

    def __call__(self) -> AbstractContextManager[None]: ...


def inputs(model: nn.Module, scenario: Scenario, point: Point, run: Runner) -> dict[str, Any] | None:
    """The keyword arguments of one call; None where the model has no such scenario."""
    names = inspect.signature(type(model).forward).parameters
    if scenario.cache != "none" and not {"past_key_values", "use_cache"} <= set(names):
        return None
    length = 1 if scenario.cache == "single" else point.length
    before = point.past if scenario.cache in ("filled", "single") else 0
    given = _first(model, point, length, before, scenario.mask)
    if before:
        seen = _first(model, point, before, 0, scenario.mask)
        with torch.no_grad(), run():
            output = model(**seen, use_cache=True)
        cache = getattr(output, "past_key_values", None)
        if cache is None:
            return None
        _fill_all(cache)
        given["past_key_values"] = cache
        if getattr(output, "encoder_last_hidden_state", None) is not None:
            given["encoder_outputs"] = BaseModelOutput(last_hidden_state=output.encoder_last_hidden_state)
    return given | ({"use_cache": scenario.cache != "none"} if "use_cache" in names else {})


def _first(model: nn.Module, point: Point, length: int, before: int, mask: bool) -> dict[str, Any]:
    """Ids for what comes next, and a mask over that and what came before; with an encoder, ids and mask for both."""
    names = list(inspect.signature(type(model).forward).parameters)[1:]
    ids, masked = _roles(model, names)
    paired = "decoder_input_ids" in names and getattr(model.config, "is_encoder_decoder", False)
    given: dict[str, Any] = {ids: _ids(point.batch, point.source if paired else length)}
    if mask and masked:
        given[masked] = _ids(point.batch, point.source if paired else before + length) + 1
    if paired:
        given["decoder_input_ids"] = _ids(point.batch, length)
        if mask and "decoder_attention_mask" in names:
            given["decoder_attention_mask"] = _ids(point.batch, before + length) + 1
    return given


def is_causal(model: nn.Module) -> bool:
    """Whether what comes last leaves all before it as it was: one forward of a loaded model on two pairs of ids."""
    first = next(model.parameters())
    if first.device.type == "meta":
        return False
    ids, _ = _roles(model, list(inspect.signature(type(model).forward).parameters)[1:])
    pair = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 5]], device=first.device)
    mode = model.training
    model.eval()
    with torch.no_grad():
        answer = model(**{ids: pair})
    model.train(mode)
    states = answer if isinstance(answer, torch.Tensor) else answer[0]
    return bool(torch.allclose(states[0, :-1], states[1, :-1], rtol=1e-3, atol=1e-4))


def _roles(model: nn.Module, names: list[str]) -> tuple[str, str | None]:
    """The parameters for the ids and for the mask: by transformers' words, else the first and the second."""
    if "input_ids" in names:
        return "input_ids", "attention_mask" if "attention_mask" in names else None
    parameters = inspect.signature(type(model).forward).parameters
    main = getattr(model, "main_input_name", names[0])
    ids = main if main in names else names[0]
    others = [n for n in names if n != ids and parameters[n].default is None]
    return ids, "attention_mask" if "attention_mask" in names else next(iter(others), None)


def _ids(batch: int, length: int) -> torch.Tensor:
    return torch.zeros(batch, length, dtype=torch.long, device="meta")


def _fill_all(cache: Any) -> None:
    for part in (cache, getattr(cache, "self_attention_cache", None), getattr(cache, "cross_attention_cache", None)):
        _fill(getattr(part, "layers", []))
    updated = getattr(cache, "is_updated", None)
    if isinstance(updated, dict):
        updated.update(dict.fromkeys(updated, any(updated.values())))


def _fill(layers: list[Any]) -> None:
    """Give the layers that were not run the state of the last one of their kind that was."""
    seen: dict[type, Any] = {}
    for index, layer in enumerate(layers):
        if getattr(layer, "is_initialized", False):
            seen[type(layer)] = layer
        elif type(layer) in seen:
            layers[index] = copy.copy(seen[type(layer)])
