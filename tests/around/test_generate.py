"""Generation: without effect as the base's, with effect the same whatever is cached, padded or left out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache, EncoderDecoderCache, StaticCache

from tests.around.subjects import GENERATING, Subject, alike, output, subjects

NEW = 5
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "sampled": {"do_sample": True, "top_k": 0},
    "beams": {"do_sample": False, "num_beams": 3},
}
CACHES: dict[str, dict[str, Any]] = {
    "none": {"use_cache": False},
    "dynamic": {"use_cache": True},
    "static": {"cache_implementation": "static"},
}
EACH = subjects(*GENERATING)
PADDED = pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])


def generated(model: Any, given: dict[str, Any], new: int = NEW, **options: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        asked = {"max_new_tokens": new, "min_new_tokens": new, "output_scores": True, "return_dict_in_generate": True}
        return model.generate(**given, **asked, **options)


def agree(one: Any, other: Any) -> None:
    assert torch.equal(one.sequences, other.sequences)
    alike(one.scores, other.scores, 1e-4)


@EACH
@PADDED
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("cache", CACHES)
def test_without_effect_as_the_base(subject: Subject, cache: str, way: str, padded: bool) -> None:
    options = {**CACHES[cache], **WAYS[way]}
    given = subject.prompt(padded)
    agree(generated(subject.neutral(), given, **options), generated(subject.base(), given, **options))


@EACH
@PADDED
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_cached_is_uncached(subject: Subject, cache: str, way: str, padded: bool) -> None:
    model, given = subject.moved(), subject.prompt(padded)
    plain = generated(model, given, **CACHES["none"], **WAYS[way])
    agree(generated(model, given, **CACHES[cache], **WAYS[way]), plain)
    assert not torch.allclose(plain.scores[0], generated(subject.base(), given, **WAYS[way]).scores[0])


@subjects("decoder", "experts")
@PADDED
def test_going_on_from_a_cache(subject: Subject, padded: bool) -> None:
    """Two calls of `generate`, the second on the cache of the first, are one.  (Of encoder-decoders no base can.)"""
    model, given = subject.moved(), subject.prompt(padded)
    whole, first = generated(model, given, new=6), generated(model, given, new=3)
    seen = given.get("attention_mask", torch.ones_like(given["input_ids"]))
    grown = {"input_ids": first.sequences, "attention_mask": torch.cat([seen, seen.new_ones(len(seen), 3)], dim=1)}
    rest = generated(model, grown, new=3, past_key_values=first.past_key_values)
    assert torch.equal(rest.sequences, whole.sequences)
    alike(rest.scores, whole.scores[3:], 1e-4)


@EACH
@PADDED
def test_several_tokens_after_a_cache(subject: Subject, padded: bool) -> None:
    """Two calls of `forward`, the second with several tokens on the cache of the first, are one."""
    model, given = subject.moved(), subject.given(padded)
    key = "decoder_input_ids" if "decoder_input_ids" in given else "input_ids"
    first = {**given, key: given[key][:, :2]}
    if key == "input_ids" and padded:
        first["attention_mask"] = given["attention_mask"][:, :2]
    cache = model(**first, use_cache=True).past_key_values
    rest = output(model, {**given, key: given[key][:, 2:]}, past_key_values=cache)
    real = given["attention_mask"].bool() if key == "input_ids" and padded else torch.ones_like(given[key]).bool()
    alike(rest[real[:, 2:]], output(model, given)[:, 2:][real[:, 2:]])


@EACH
def test_one_of_several_lengths_as_alone(subject: Subject) -> None:
    model, batch = subject.moved(), subject.prompt(padded=True)
    together = generated(model, batch)
    for row, (ids, mask) in enumerate(zip(batch["input_ids"], batch["attention_mask"], strict=True)):
        alone = generated(model, {"input_ids": ids[mask.bool()][None]})
        assert torch.equal(alone.sequences[0, -NEW:], together.sequences[row, -NEW:])
        alike([s[0] for s in alone.scores], [s[row] for s in together.scores], 1e-4)


@EACH
def test_a_cache_of_the_user(subject: Subject) -> None:
    """A static cache that is made beforehand, larger than needed, and used twice."""
    model, given = subject.moved(), subject.prompt()
    config = model.config.get_text_config(decoder=True)
    cache: Any = StaticCache(config=config, max_cache_len=24)
    if model.config.is_encoder_decoder:
        cache = EncoderDecoderCache(cache, DynamicCache(config=config))
    plain = generated(model, given, **CACHES["none"])
    agree(generated(model, given, past_key_values=cache), plain)
    cache.reset()
    agree(generated(model, given, past_key_values=cache), plain)
