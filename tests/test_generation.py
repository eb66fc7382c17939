"""Generation with a cache is generation without; outputs keep their lengths; checkpointing changes no gradient."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers import StaticCache

from peftc.runtime import attach
from tests.laws import Case, additions, answer, move, perturbed, samples
from tests.zoo import DECODERS, ZOO, Tiny, fresh, inputs, named

QUICK = ("everything", "by layer", "prefix reparametrize", "mam")
NEW = 6
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "sampled": {"do_sample": True, "top_k": 0},
    "beam": {"num_beams": 3, "do_sample": False},
}


def cases(zoo: tuple[Tiny, ...] = DECODERS, quick: tuple[str, ...] = QUICK) -> pytest.MarkDecorator:
    found = [Case(tiny, name) for tiny in zoo for name in samples(tiny)]
    marked = [pytest.param(c, id=str(c), marks=[] if c.name in quick else [pytest.mark.slow]) for c in found]
    return pytest.mark.parametrize("case", marked)


def model_of(case: Case) -> Any:
    """Attached and perturbed: a method at its initialisation shows little."""
    return perturbed(case.attached())


def generated(model: Any, given: dict[str, Any], **options: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        sizes = {"max_new_tokens": NEW, "min_new_tokens": NEW}
        return model.generate(**given, **sizes, output_scores=True, return_dict_in_generate=True, **options)


def alike(one: Any, other: Any) -> None:
    assert torch.equal(one.sequences, other.sequences)
    for a, b in zip(one.scores, other.scores, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@cases()
@pytest.mark.parametrize("way", WAYS)
def test_cached_is_uncached(case: Case, way: str) -> None:
    model = model_of(case)
    for padded in (False, True):
        given = inputs(model, padded, causal=True)
        cached, plain = (generated(model, given, use_cache=use, **WAYS[way]) for use in (True, False))
        alike(cached, plain)


@pytest.mark.parametrize("tiny", [named("llama"), named("gpt2")], ids=lambda tiny: tiny.name)
@pytest.mark.parametrize("padded", [False, True], ids=["", "padded"])
def test_static_cache(tiny: Tiny, padded: bool) -> None:
    model = model_of(Case(tiny, "everything"))
    given = inputs(model, padded, causal=True)
    cache = StaticCache(config=model.config, max_cache_len=24)
    alike(generated(model, given, past_key_values=cache), generated(model, given, use_cache=False))


@cases(quick=("everything", "by layer"))
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_going_on_from_a_cache(case: Case, attention: str) -> None:
    """Several tokens at once after a cache, with a mask and without."""
    model = model_of(case)
    model.set_attn_implementation(attention)
    for padded in (False, True):
        given = inputs(model, padded, causal=True)
        ids, mask = given["input_ids"], given.get("attention_mask")
        whole = answer(model, given)
        first = {"input_ids": ids[:, :5], **({} if mask is None else {"attention_mask": mask[:, :5]})}
        cache = model(**first, use_cache=True).past_key_values
        rest = answer(model, {**given, "input_ids": ids[:, 5:], "past_key_values": cache, **positions(model, mask)})
        real = torch.ones_like(ids[:, 5:]).bool() if mask is None else mask[:, 5:].bool()
        torch.testing.assert_close(rest[real], whole[:, 5:][real], atol=1e-5, rtol=1e-5)
        assert cache.get_seq_length() == ids.shape[1]


def positions(model: Any, mask: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """The positions that the whole sequence had: counted from the left, padding included."""
    return {} if mask is None else {"position_ids": torch.arange(mask.shape[1])[None, 5:].expand(len(mask), -1)}


@cases(ZOO, quick=("everything", "by layer"))
def test_outputs_keep_their_lengths(case: Case) -> None:
    base, model = fresh(case.tiny, "eager"), attach(fresh(case.tiny, "eager"), case.artifact())
    given = inputs(base, True, causal=case.tiny.causal)
    asked = {"output_attentions": True, "output_hidden_states": True}
    expected, found = base(**given, **asked), model(**given, **asked)
    assert found.keys() == expected.keys()
    assert [h.shape for h in found.hidden_states] == [h.shape for h in expected.hidden_states]
    assert [a.shape[:-1] for a in found.attentions] == [a.shape[:-1] for a in expected.attentions]
    if case.identity:
        assert all(torch.equal(*pair) for pair in zip(found.hidden_states, expected.hidden_states, strict=True))


@cases(ZOO, quick=("everything", "by layer"))
@pytest.mark.parametrize("reentrant", [False, True], ids=["", "reentrant"])
@pytest.mark.parametrize("first", ["checkpointed", "attached"])
def test_checkpointing(case: Case, reentrant: bool, first: str) -> None:
    base = fresh(case.tiny)
    plain = perturbed(attach(copy.deepcopy(base), case.artifact()))
    if first == "checkpointed":
        checkpoint(base, reentrant)
    model = attach(base, case.artifact())
    if first == "attached":
        checkpoint(model, reentrant)
    move(additions(model))
    for padded in (False, True):
        given = inputs(base, padded, causal=case.tiny.causal)
        for one in (plain, model):
            answer(one.train(), given).square().sum().backward()
    same_gradients(plain, model)


def checkpoint(model: Any, reentrant: bool) -> None:
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()  # or a first layer whose input needs no gradient has none


def same_gradients(one: nn.Module, other: nn.Module) -> None:
    theirs = dict(other.named_parameters())
    for name, parameter in one.named_parameters():
        found = theirs[name].grad
        assert (parameter.grad is None) == (found is None), name
        if parameter.grad is not None:
            torch.testing.assert_close(found, parameter.grad, atol=1e-5, rtol=1e-5)
