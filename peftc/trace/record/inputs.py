"""Example inputs for a whole model, on its device, from the names of its forward's parameters."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import nn

from peftc.trace.record.caches import Kept, Runner, fill, kept, settings_of, takes_use_cache
from peftc.trace.record.feeds import (
    POINTS,
    Feed,
    Point,
    device_of,
    feed,
    float_dtype,
    is_paired,
    parameters,
    whole,
    zeros,
)

DECODER_MASK = "decoder_attention_mask"
_CACHES: WeakKeyDictionary[nn.Module, Kept | None] = WeakKeyDictionary()


@dataclass(frozen=True)
class Scenario:
    """How the outer model is called: padded or not; no cache, an empty one, a filled one; the first, or a later token.

    A model that takes no mask is padded where it makes one all the same, as transformers' do while they are exported.

    `whole`: beside a cache, the ids of what it holds come once more.  `alone`: a decoder that may read what some
    encoder said is given nothing of it.  `halved`: of an encoder's and its decoder's masks, only the first is given.
    """

    mask: bool
    cache: Literal["none", "empty", "first", "filled", "single"]
    whole: bool = False
    alone: bool = False
    halved: bool = False

    def __str__(self) -> str:
        further = ", without an encoder" * self.alone + ", without the decoder's mask" * self.halved
        return f"{'padded' if self.mask else 'unpadded'}, cache: {self.cache}{further}"

    @property
    def continues(self) -> bool:
        """Whether the cache holds something before the call."""
        return self.cache in ("filled", "single")


_SCENARIOS = (
    Scenario(mask=True, cache="none"),
    Scenario(mask=False, cache="none"),
    Scenario(mask=True, cache="empty"),
    Scenario(mask=True, cache="filled"),
    Scenario(mask=True, cache="single"),
    Scenario(mask=True, cache="first"),
    Scenario(mask=False, cache="empty"),
    Scenario(mask=False, cache="filled"),
)
SCENARIOS = (
    *_SCENARIOS,
    replace(_SCENARIOS[0], halved=True),
    *(replace(scenario, alone=True) for scenario in _SCENARIOS),
)


def inputs(model: nn.Module, scenario: Scenario, point: Point, run: Runner) -> dict[str, Any] | None:
    """The keyword arguments of one call; None where the model has no such scenario."""
    reads = feed(model)
    if scenario.cache != "none" and not (takes_use_cache(model) or settings_of(model)):
        return None
    if scenario.continues and not (takes_use_cache(model) and _cache(model, run)):
        return None
    if scenario.alone and not _listens(model):
        return None
    if scenario.halved and not (reads.paired and DECODER_MASK in parameters(model)):
        return None
    length = 1 if scenario.cache in ("first", "single") else point.length
    now, heard = replace(point, length=length), _heard(model, point, scenario)
    if scenario.continues:
        given = _after(model, now, scenario, heard, run)
    else:
        given = _given(model, reads, now, 0, scenario.mask) | heard
        given = {name: value for name, value in given.items() if not (scenario.halved and name == DECODER_MASK)}
    if given is None:
        return None
    if scenario.cache in ("empty", "first"):
        given = _unheard(reads, given, _encoded(model, reads, given, run))
    return given | ({"use_cache": scenario.cache != "none"} if takes_use_cache(model) else {})


def _listens(model: nn.Module) -> bool:
    """Whether a decoder without an encoder of its own attends to the states of another's."""
    crosses = getattr(getattr(model, "config", None), "add_cross_attention", False)
    return bool(crosses) and "encoder_hidden_states" in parameters(model) and not is_paired(model)


def _heard(model: Any, point: Point, scenario: Scenario) -> dict[str, Any]:
    """What an encoder said, for a decoder that listens, and a mask over it."""
    if scenario.alone or not _listens(model):
        return {}
    width = getattr(model.config, "cross_attention_hidden_size", None) or model.config.hidden_size
    heard = {"encoder_hidden_states": zeros((point.batch, point.source, width), float_dtype(model), device_of(model))}
    if scenario.mask and "encoder_attention_mask" in parameters(model):
        heard["encoder_attention_mask"] = zeros((point.batch, point.source), torch.long, device_of(model)) + 1
    return heard


def _cache(model: nn.Module, run: Runner) -> Kept | None:
    """What a model keeps from one call to the next."""
    if model not in _CACHES:
        _CACHES[model] = kept(model, _given(model, feed(model), POINTS[0], 0, mask=False), run)
    return _CACHES[model]


def _given(model: nn.Module, reads: Feed, point: Point, before: int, mask: bool) -> dict[str, Any]:
    """What comes next, and a mask over that and what came before; with an encoder, ids and mask for both."""
    given = whole(model, reads, point, mask)
    everything = zeros((point.batch, before + point.length), torch.long, device_of(model)) + 1
    if not reads.paired:
        return given | ({str(reads.mask): everything} if before and mask and reads.mask else {})
    masked = mask and DECODER_MASK in parameters(model)
    return given | ({DECODER_MASK: everything} if masked else {})


def _after(
    model: nn.Module, point: Point, scenario: Scenario, heard: dict[str, Any], run: Runner
) -> dict[str, Any] | None:
    """What comes after earlier tokens: ids, the cache of what a first run saw, and what an encoder said."""
    reads, before, mask, keeps = feed(model), point.past, scenario.mask, _cache(model, run)
    assert keeps is not None
    first = _given(model, reads, replace(point, length=before), 0, mask)
    encoded = _encoded(model, reads, first, run)
    with torch.no_grad(), run():
        cache = keeps.of(model(**_unheard(reads, first, encoded), **heard, use_cache=True))
    if cache is None:
        return None
    fill(cache)
    read = reads if reads.paired else reads.later()
    again = replace(point, length=before + point.length)
    given = _given(model, read, again, 0, mask) if scenario.whole else _given(model, read, point, before, mask)
    return {**_unheard(reads, given, encoded), **heard, keeps.name: cache}


def _unheard(reads: Feed, given: dict[str, Any], encoded: dict[str, Any]) -> dict[str, Any]:
    """What a decoder is called with: what an encoder said in place of the picture or the sound that it was about."""
    senses = {i.name for i in reads.inputs if i.holds == "numbers"} if encoded else ()
    return {name: value for name, value in given.items() if name not in senses} | encoded


def _encoded(model: Any, reads: Feed, given: dict[str, Any], run: Runner) -> dict[str, Any]:
    """What the model's own encoder, where it has one, makes of its part of the inputs: generation asks it once."""
    if not (reads.paired and "encoder_outputs" in parameters(model) and getattr(model, "get_encoder", None)):
        return {}
    encoder, main = model.get_encoder(), reads.inputs[0].name
    if encoder is model:  # transformers' answer where none is found
        return {}
    names = parameters(encoder)
    own = {name: value for name, value in given.items() if name in names}
    first = getattr(encoder, "main_input_name", next(iter(names)))
    if own.keys().isdisjoint((main, first)):
        own[first] = given[main]
    with torch.no_grad(), run():
        return {"encoder_outputs": encoder(**own)}
