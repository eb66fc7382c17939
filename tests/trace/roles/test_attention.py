"""Whose keys an attention reads: its own sequence's, by whatever names they are handed in, or another one's.

And attentions that a model's own function computes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bert.modeling_bert import eager_attention_forward

from peftc.graph.sites import Attention, Projection
from peftc.methods.prefix import Prefix
from peftc.trace.record.calls import Recorded
from peftc.trace.roles.attention import attention_sites
from peftc.trace.roles.layers import alike
from peftc.trace.tracer.values import TraceFailure
from tests.trace.seen import seen, sites


def test_parameters_that_are_always_given_one_tensor() -> None:
    one, other, third = (torch.empty(2, 3) for _ in range(3))
    calls = [
        (Recorded({"v": one, "k": one, "q": one, "mask": other, "count": 1}, {}),),
        (Recorded({"v": other, "k": other, "q": other, "mask": third, "count": 1}, {}),),
    ]
    assert alike(calls) == {"k": "v", "q": "v"}
    crossed = (Recorded({"v": one, "k": one, "q": third, "mask": other, "count": 1}, {}),)
    assert alike([*calls, crossed]) == {"k": "v"}
    without = (Recorded({"v": one, "q": one}, {}),)
    assert alike([*calls, without]) == {"q": "v"}
    assert alike([]) == {}


def test_parameters_that_are_always_given_tensors_of_one_length() -> None:
    """Queries, keys and values may be normed apart; another sequence has another length in some example."""
    one, other, longer = (torch.empty(2, length, 4) for length in (7, 7, 9))
    assert alike([(Recorded({"q": one, "k": other, "mask": torch.empty(2, 7)}, {}),)]) == {"k": "q"}
    assert alike([(Recorded({"q": one, "k": longer}, {}),)]) == {}
    assert alike([(Recorded({"q": one, "k": one.long()}, {}),)]) == {}


class Interface(nn.Module):
    """Attention that names what it hands to transformers' interface, the mask first."""

    def __init__(self) -> None:
        super().__init__()
        self.config = BertConfig()
        self.config._attn_implementation = "eager"
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (p.unflatten(-1, (2, 4)).transpose(1, 2) for p in (self.q_proj(x), self.keys(x), self.v_proj(x)))
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        out: Tensor = attend(self, attention_mask=None, value=v, key=k, query=q, scaling=0.5)[0]
        return out

    def keys(self, x: Tensor) -> Tensor:
        made: Tensor = self.k_proj(x)
        return made


class Partial(Interface):
    """Keys beside a part of something else that has no width."""

    def __init__(self) -> None:
        super().__init__()
        self.rotated = nn.Linear(8, 16)

    def keys(self, x: Tensor) -> Tensor:
        return torch.cat([self.k_proj(x), self.rotated(x)[..., 16:]], -1)


def test_a_part_without_features_is_no_source() -> None:
    sites = {site.name: site for site in attention_sites(seen(Partial(), 8))}
    assert isinstance(sites["k"], Projection) and sites["k"].module == "k_proj"


def test_an_interface_that_is_called_by_names() -> None:
    sites = {site.name: site for site in attention_sites(seen(Interface(), 8))}
    assert {name: getattr(site, "module", None) for name, site in sites.items() if name in ("q", "k", "v")} == {
        "q": "q_proj", "k": "k_proj", "v": "v_proj",
    }  # fmt: skip


class Merged(nn.Module):
    """Heads and examples in one axis, where the rows of each part lie apart."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        qkv = self.qkv(x).view(batch, length, 2, 3, 4).permute(3, 0, 2, 1, 4)
        query, key, value = qkv.reshape(3, batch * 2, length, 4).unbind(0)
        return nn.functional.scaled_dot_product_attention(query, key, value)


def test_heads_and_examples_in_one_axis_are_said() -> None:
    with pytest.raises(TraceFailure, match="what qkv makes arrives in one axis with examples"):
        attention_sites(seen(Merged(), 8))


class Single(nn.Module):
    """One head, without an axis for it."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(*self.qkv(x).chunk(3, dim=-1))


def test_one_head_without_an_axis_takes_no_prefix() -> None:
    *linears, attention = attention_sites(seen(Single(), 8))
    assert {s.name: s.outputs for s in linears if isinstance(s, Projection)} == {"q": 8, "k": 8, "v": 8}
    assert "has keys that are not (batch, heads, length, width)" in str(Prefix(length=2).refusal(attention))


class Routed(nn.Module):
    """Attention whose queries experts make, of stacked matrices: no one linear map does."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.Parameter(torch.empty(2, 8, 8))
        self.k_proj, self.v_proj = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        query = torch.einsum("bld,edf->blf", x, self.experts)
        query, key, value = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in (query, self.k_proj(x), self.v_proj(x)))
        return nn.functional.scaled_dot_product_attention(query, key, value)


def test_keys_and_values_are_sites_where_no_linear_map_makes_the_queries() -> None:
    sites = attention_sites(seen(Routed(), 8))
    assert [site.name for site in sites] == ["k", "v", "attention"]
    assert isinstance(sites[-1], Attention)
    assert Prefix().refusal(sites[-1]) is None
    assert sites[-1].input == "x"


class Mixed(torch.autograd.Function):
    """(query * key) value, with a derivative of its own."""

    @staticmethod
    def forward(ctx: Any, mask: None, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(query, key, value)
        return query * key * value

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        query, key, value = ctx.saved_tensors
        return None, grads[0] * key * value, grads[0] * query * value, grads[0] * query * key


def mixed(value: torch.Tensor, key: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    return query.sigmoid() * key * value


def without_its_kernel(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(query).requires_grad_()


WAYS: dict[str, Callable[..., torch.Tensor]] = {
    "a function": lambda q, k, v: mixed(v, k, q),
    "a function with its derivative": lambda q, k, v: Mixed.apply(None, q, k, v),  # type: ignore[no-untyped-call]
    "nothing": lambda q, k, v: without_its_kernel(q, k, v),
}


class Own(nn.Module):
    def __init__(self, way: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.one, self.two, self.three = (nn.Linear(4, 4) for _ in range(3))
        self.way = way

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.way(self.one(x), self.two(x), self.three(x))


class Banded(nn.Module):
    """Copies the scores of some keys into place."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = torch.bmm(self.query(x), self.key(x).transpose(1, 2))
        banded = torch.full_like(scores, -1e4)
        banded[:, :, 1:] = scores[:, :, 1:]
        return torch.bmm(torch.softmax(banded, -1), self.value(x))


def test_scores_that_are_copied_are_the_scores() -> None:
    found = {site.name: site for site in attention_sites(seen(Banded(), 4))}
    assert [getattr(found[part], "module", "") for part in "qkv"] == ["query", "key", "value"]


@pytest.mark.parametrize("name", WAYS)
def test_a_function_of_query_key_and_value_attends(name: str) -> None:
    found = {site.name: site for site in attention_sites(seen(Own(WAYS[name]), 4))}
    if name == "nothing":
        assert not found
        return
    modules = [getattr(found[part], "module", "") for part in "qkv"]
    assert modules == ["one", "two", "three"]
    assert isinstance(found["attention"], Attention)
    assert "by a function of the model's own" in (Prefix().refusal(found["attention"]) or "")


class Compressing(nn.Module):
    """Attends to what a module of several linears makes of a wide state, beside its own keys."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.query, self.both = nn.Linear(8, 16), nn.Linear(16, 4), nn.Linear(8, 4)
        self.compress = nn.Sequential(nn.Linear(16, 4), nn.Tanh(), nn.Linear(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        wide = self.wide(x)
        states = torch.cat([self.both(x), self.compress(wide)], 1)
        return torch.bmm(torch.softmax(torch.bmm(self.query(wide), states.transpose(1, 2)), -1), states)


def test_what_linears_make_for_a_module_of_linears_are_no_keys() -> None:
    found = {site.name: site for site in attention_sites(seen(Compressing(), 8, leaves=["compress"]))}
    assert [getattr(found[part], "module", "") for part in "qkv"] == ["query", "both", "both"]


class Differential(nn.Module):
    """The difference of two attentions, whose queries and keys are halves of the same projections."""

    def __init__(self, fused: bool, written: bool) -> None:
        super().__init__()
        self.fused, self.written = fused, written
        self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1) if self.fused else (self.q(x), self.k(x), self.v(x))
        first, second = zip(*(part.unflatten(-1, (2, 2, 2)).unbind(-2) for part in (q, k)), strict=True)
        mixed = self.attended(*first, v) - 0.3 * self.attended(*second, v)
        made: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return made

    def attended(self, *states: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (2, -1)) if part.dim() == 3 else part for part in states)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        if self.written:
            return (q @ k.transpose(-1, -2)).softmax(-1) @ v
        return nn.functional.scaled_dot_product_attention(q, k, v)


@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_attentions_on_halves_of_one_projection_are_changed_together(fused: bool, written: bool) -> None:
    found = sites(Differential(fused, written), 8)
    parts = [site for name in "qkv" if isinstance(site := found[name], Projection)]
    rows = [tuple(range(i * 8, (i + 1) * 8)) for i in range(3)] if fused else [None, None, None]
    assert [site.rows and tuple(sorted(site.rows)) for site in parts] == rows
    assert [site.outputs for site in parts] == [8] * 3
    attention = found["attention"]
    assert isinstance(attention, Attention)
    assert attention.written == "is one of 2 side by side, each with parts of the same projections"
