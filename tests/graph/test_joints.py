"""A prefix in attentions that are written out: equal to the same sums by hand, and to a cache that holds its tables."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from inspect import signature
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from peftc.runtime import attach
from peftc.trace import trace_model
from tests.laws import additions, emitted, move, spec, trace
from tests.zoo import Tiny, fresh, inputs, named

LENGTH, HEADS, SPAN = 3, 4, 8
_SIZES = {"n_embd": 32, "n_layer": 2, "n_head": HEADS, "bos_token_id": 1, "eos_token_id": 2}
_LAYER = {"hidden_size": 32, "num_attention_heads": HEADS, "intermediate_size": 48, "max_position_embeddings": 40}
TINY = {
    tiny.name: tiny
    for tiny in (
        Tiny("megatron-bert", {**_LAYER, "num_hidden_layers": 2}, None),
        Tiny("deberta-v2", {**_LAYER, "num_hidden_layers": 2}, None),  # scales its keys before the product
        Tiny("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": HEADS}, "causal-lm", causal=True),
        Tiny("mpt", {"d_model": 32, "n_layers": 2, "n_heads": HEADS, "max_seq_len": 64}, "causal-lm", causal=True),
        Tiny("codegen", {**_SIZES, "n_positions": 64, "rotary_dim": 4}, "causal-lm", causal=True),
        Tiny(
            "gpt_neo",
            {"hidden_size": 32, "num_layers": 2, "num_heads": HEADS, "window_size": 4, "max_position_embeddings": 64,
             "attention_types": [[["global", "local"], 1]], "bos_token_id": 1, "eos_token_id": 2},
            "causal-lm", causal=True,
        ),
        Tiny(
            "cpmant",  # masks its weights too
            {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": HEADS, "dim_head": SPAN, "dim_ff": 48,
             "prompt_length": 4, "prompt_types": 4, "segment_types": 4, "position_bias_max_distance": 64},
            "causal-lm",
        ),
    )
}  # fmt: skip


@cache
def bases(name: str) -> tuple[Any, Any]:
    """A base, and the same with a prefix whose tables are no longer small."""
    tiny = TINY[name]
    base = tiny.model(attention="eager")
    written = spec([{"method": "prefix", "length": LENGTH}], tiny)
    model = attach(tiny.model(attention="eager"), emitted(written, trace_model(base))[1])
    move((p for n, p in model.named_parameters() if "_prefix." in n), by=1.0)
    return base, model


def attentions(model: Any) -> list[Any]:
    return [module for module in model.modules() if "attention_prefix" in dict(module.named_children())]


def apart(states: Tensor) -> Tensor:
    """(…, length, width) by heads: (…, heads, length, span)."""
    split: Tensor = states.unflatten(-1, (HEADS, SPAN)).transpose(-2, -3)
    return split


def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """softmax(query [P_K; key]' / sqrt(span) + [0, bias]) [P_V; value]."""
    tables = [apart(table)[None].expand(len(query), -1, -1, -1) for table in module.attention_prefix()]
    keys, values = (torch.cat(both, 2) for both in zip(tables, (key, value), strict=True))
    scores = query @ keys.transpose(-1, -2) / SPAN**0.5
    if bias is not None:
        scores += torch.nn.functional.pad(bias.expand(*query.shape[:3], -1), (LENGTH, 0))
    weights = torch.softmax(scores, -1)
    mixed: Tensor = (weights @ values).transpose(1, 2).flatten(2)
    return mixed


def by_projections(module: Any, given: dict[str, Any]) -> Tensor:
    query, key, value = (apart(part(given["hidden_states"])) for part in (module.query, module.key, module.value))
    return attend(module, query, key, value, given["attention_mask"])


def by_slopes(module: Any, given: dict[str, Any]) -> Tensor:
    states = module.query_key_value(given["hidden_states"]).unflatten(-1, (HEADS, 3, SPAN))
    query, key, value = (states[..., part, :].transpose(1, 2) for part in range(3))
    slopes = given["alibi"].unflatten(0, (-1, HEADS))
    made = module.dense(attend(module, query, key, value, slopes + given["attention_mask"]))
    out: Tensor = made + given["residual"]
    return out


def by_masks(module: Any, given: dict[str, Any]) -> Tensor:
    states = given["hidden_q"]
    query, key, value = (apart(part(states)) for part in (module.project_q, module.project_k, module.project_v))
    seen = given["attention_mask"][:, None].bool()
    bias = given["position_bias"].expand(len(states), -1, -1, -1).masked_fill(~seen, -torch.inf)
    out: Tensor = module.attention_out(attend(module, query, key, value, bias))
    return out


def by_distance(module: Any, given: dict[str, Any]) -> Tensor:
    """Only differences of such a bias count: those from the query's own key, so that learnt keys have none."""
    query, key, value = (apart(part) for part in module.Wqkv(given["hidden_states"]).chunk(3, -1))
    from_last = given["position_bias"][..., -key.shape[-2] :]
    distance = (from_last - from_last.transpose(-1, -2)).masked_fill(given["attention_mask"], -torch.inf)
    made: Tensor = module.out_proj(attend(module, query, key, value, distance))
    return made


def called(model: Any, module: Any, given: dict[str, Any]) -> tuple[dict[str, Any], Tensor]:
    """The arguments by name and the output of a module, where the model runs."""
    seen: list[tuple[dict[str, Any], Tensor]] = []
    parameters = signature(type(module).forward)

    def see(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        seen.append((parameters.bind(module, *args, **kwargs).arguments, output[0]))

    with torch.no_grad():
        handle = module.register_forward_hook(see, with_kwargs=True)
        model(**given)
        handle.remove()
    return seen[0]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    ("name", "sums"), [("megatron-bert", by_projections), ("bloom", by_slopes), ("cpmant", by_masks)]
)
def test_the_sums_by_hand(name: str, sums: Callable[[Any, dict[str, Any]], Tensor], padded: bool) -> None:
    _, model = bases(name)
    assert len(attentions(model)) == 2
    for module in attentions(model):
        given, found = called(model, module, inputs(model, padded, causal=TINY[name].causal))
        torch.testing.assert_close(found, sums(module, given))


@pytest.mark.parametrize(("name", "made"), [("megatron-bert", "key value"), ("deberta-v2", "key_proj value_proj")])
def test_learnt_keys_that_are_the_own_ones_change_nothing(name: str, made: str) -> None:
    """Twice the keys with twice the values: the same average."""
    base, model = bases(name)
    given = {key: value[:1, :LENGTH] for key, value in inputs(base, False, causal=False).items()}
    for module in attentions(model):
        arguments, _ = called(model, module, given)
        with torch.no_grad():
            tables = [getattr(module, linear)(arguments["hidden_states"])[0] for linear in made.split()]
            module.attention_prefix.key.copy_(tables[0]), module.attention_prefix.value.copy_(tables[1])
    with torch.no_grad():
        torch.testing.assert_close(model(**given)[0], base(**given)[0])


@pytest.mark.parametrize("padded", [False, True])
def test_a_prefix_is_a_cache_of_its_tables(padded: bool) -> None:
    """The base itself attends over both: tables in its cache, a mask that shows them, positions that do not count."""
    base, model = bases("codegen")
    given = inputs(base, padded, causal=True)
    mask = given.get("attention_mask", torch.ones_like(given["input_ids"]))
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache = DynamicCache()
    for index, module in enumerate(attentions(model)):
        key, value = (apart(t)[None].expand(len(mask), -1, -1, -1) for t in module.attention_prefix())
        cache.update(key, value, index)
    seen = torch.cat([torch.ones_like(mask[:, :LENGTH]), mask], 1)
    with torch.no_grad():
        expected = base(given["input_ids"], attention_mask=seen, position_ids=positions, past_key_values=cache)[0]
        found = model(**given, position_ids=positions)[0]
        assert not torch.allclose(found[mask.bool()], base(**given, position_ids=positions)[0][mask.bool()], atol=1e-2)
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [name for name, tiny in TINY.items() if tiny.causal])
def test_cached_generation_is_uncached(name: str) -> None:
    base, model = bases(name)
    settings = {"do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6, "pad_token_id": 0}
    settings |= {"output_scores": True, "return_dict_in_generate": True}
    for padded in (False, True):
        given = {**inputs(base, padded, causal=True), **settings}
        cached, uncached = (model.generate(**given, use_cache=use) for use in (True, False))
        assert torch.equal(cached.sequences, uncached.sequences)
        torch.testing.assert_close(cached.scores[-1], uncached.scores[-1], atol=1e-4, rtol=1e-4)
        assert not torch.equal(cached.scores[0], base.generate(**given).scores[0])


def test_a_flag_among_further_arguments_is_in_the_mask() -> None:
    """CLIP's text tower hands is_causal on: without a mask, and with one that hides nothing, it is the same."""
    sizes = {**_LAYER, "num_hidden_layers": 2, "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0}
    tiny = Tiny("clip_text_model", sizes, None)
    model = attach(
        tiny.model(), emitted(spec([{"method": "prefix", "length": LENGTH}], tiny), trace_model(tiny.model()))[1]
    )
    move((p for n, p in model.named_parameters() if "_prefix." in n), by=1.0)
    ids = torch.arange(3, 10)[None].repeat(2, 1)
    with torch.no_grad():
        alone, masked = model(ids)[0], model(ids, attention_mask=torch.ones_like(ids))[0]
        model.config._attn_implementation = "eager"
        torch.testing.assert_close(alone, masked)
        torch.testing.assert_close(alone, model(ids)[0])


def test_a_masked_gate_where_the_scores_take_the_mask() -> None:
    """A text is the same alone and beside padding."""
    tiny = TINY["megatron-bert"]
    written = spec([{"method": "adapter", "bottleneck": 4, "gate": "masked"}], tiny)
    model = attach(tiny.model(attention="eager"), emitted(written, trace_model(tiny.model(attention="eager")))[1])
    move(p for n, p in model.named_parameters() if "adapter" in n)
    ids, mask = torch.arange(3, 13)[None], torch.ones(1, 10, dtype=torch.long)
    mask[:, 7:] = 0
    with torch.no_grad():
        alone, padded = model(ids[:, :7])[0], model(ids, attention_mask=mask)[0]
    torch.testing.assert_close(padded[:, :7], alone)


def test_two_prefixes_beside_a_bias_are_one_of_both() -> None:
    """Of an attention that is handed a bias for each key, a prefix makes it longer, and so does the next."""
    tiny = named("t5")
    entries = [{"method": "prefix", "length": length, "again": True} for length in (2, 4)]
    two, one = (
        attach(fresh(tiny), emitted(spec(own, tiny), trace(tiny))[1])
        for own in (entries, [{"method": "prefix", "length": 6}])
    )
    move(additions(two), by=1.0)
    with torch.no_grad():
        for module, both in zip(attentions(one), attentions(two), strict=True):
            for name, table in module.attention_prefix.named_parameters():
                tables = (both.attention_prefix_2, both.attention_prefix)
                table.copy_(torch.cat([prefix.get_parameter(name) for prefix in tables]))
        for padded in (False, True):
            given = inputs(one, padded)
            given["decoder_input_ids"] = given["input_ids"][:, :4]
            torch.testing.assert_close(two(**given)[0], one(**given)[0])
