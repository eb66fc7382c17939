"""What a model keeps from one call to the next: the parameter that takes it, and where it comes back."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from peftc.trace.record.feeds import FAILURES, parameters, values_of
from peftc.trace.record.nested import tensors_in

CACHE = "past_key_values"


class Runner(Protocol):
    """Opens the block in which a model is run."""

    def __call__(self) -> AbstractContextManager[None]: ...


@dataclass(frozen=True)
class Kept:
    """A cache: the parameter that takes it, and the attribute, or the item of a tuple, that gives it back."""

    name: str
    place: str | int

    def of(self, returned: Any) -> Any:
        """The cache in what a call returned; None where there is none."""
        if isinstance(self.place, str):
            return getattr(returned, self.place, None)
        return returned[self.place] if isinstance(returned, tuple) and self.place < len(returned) else None


def takes_use_cache(model: nn.Module) -> bool:
    """Whether a model may be told to keep a cache or not: by name, or as one of the settings that it hands on."""
    found = parameters(model)
    hands_on = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in found.values())
    caches = CACHE in found and any(name == "use_cache" for name, _ in values_of(getattr(model, "config", None)))
    return "use_cache" in found or (hands_on and caches)


def settings_of(model: nn.Module) -> list[PreTrainedConfig]:
    """The configs that say whether a forward keeps a cache where its call does not."""
    found = (getattr(module, "config", None) for module in model.modules())
    configs = {id(config): config for config in found if isinstance(config, PreTrainedConfig)}
    return [config for config in configs.values() if "use_cache" in vars(config)]


@contextmanager
def keeping(model: nn.Module, keeps: bool) -> Iterator[None]:
    """In the block a forward keeps a cache or not, where its config alone says so; an encoder keeps none beside it."""
    own = [] if takes_use_cache(model) else settings_of(model)
    before = [(config, config.use_cache) for config in own if not (keeps and any(other.use_cache for other in own))]
    try:
        for config, _ in before:
            config.use_cache = keeps
        yield
    finally:
        for config, was in before:
            config.use_cache = was


def kept(model: nn.Module, given: dict[str, Any], run: Runner) -> Kept | None:
    """By transformers' word, but in a tuple; else what comes back only where it is asked for, and what goes on from it.

    An attribute has the parameter's name.  Of a tuple's item, that parameter is one with which it comes back longer.
    """
    usual = Kept(CACHE, CACHE) if CACHE in parameters(model) else None
    known = usual if isinstance(model, PreTrainedModel) else None
    with torch.no_grad(), run(), suppress(*(FAILURES if known else ())):
        with_cache = model(**given, use_cache=True)
        if known is None or isinstance(with_cache, tuple):
            return next(_found(model, given, with_cache, model(**given, use_cache=False)), usual)
    return known


def _found(model: Any, given: dict[str, Any], with_cache: Any, without: Any) -> Iterator[Kept]:
    names = [name for name, p in parameters(model).items() if name not in given and p.default is None]
    for cache in (Kept(name, name) for name in names):
        if cache.of(with_cache) is not None and cache.of(without) is None:
            yield cache
    count = len(with_cache) if isinstance(with_cache, tuple) else 0
    for cache in (Kept(name, place) for place in range(count) for name in names):
        filled = cache.of(with_cache)
        if next(tensors_in(filled), None) is None or next(tensors_in(cache.of(without)), None) is not None:
            continue
        with suppress(*FAILURES):
            longer = cache.of(model(**given, **{cache.name: filled}, use_cache=True))
            if [t.shape for t in tensors_in(longer)] != [t.shape for t in tensors_in(filled)]:
                yield cache


def fill(cache: Any) -> None:
    """Give the layers that were not run what one of their kind keeps."""
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
