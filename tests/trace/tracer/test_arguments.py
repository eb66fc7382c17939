"""Calls of one module in several sizes: a token at a time, beside a cache that counts, with a mask handed on."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, fx, nn
from transformers.utils.generic import ModelOutput

from peftc.errors import PeftcError
from peftc.graph.branches import Guard
from peftc.trace.record.calls import Recorded
from peftc.trace.record.observed import Call
from peftc.trace.tracer.patches import installed
from peftc.trace.tracer.units import EAGER, UnitTracer
from peftc.trace.tracer.values import TraceFailure
from tests.trace.nets import WIDTH, Block, Net, attached


class Counter:
    """A cache that has forgotten nothing yet."""

    def forgotten(self) -> int:
        return 0


def masked(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None or x.shape[1] == 1 else x * mask[..., None]


class Step(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)

    def forward(self, x: Tensor, mask: Tensor | None = None, cache: Counter | None = None) -> Tensor:
        x = masked(self.first(x), mask)
        if cache is None:
            return x
        return x.neg() if x.shape[1] == 1 else x + cache.forgotten()


def call(*lengths: int, **given: Any) -> Call:
    sizes = zip((2, 3), lengths, strict=True)
    named = ({"x": torch.empty(*s, 4, device="meta"), "mask": torch.empty(s, device="meta")} for s in sizes)
    return tuple(Recorded({**tensors, **given}, {}) for tensors in named)


def traced(*calls: Call) -> fx.Graph:
    with installed() as session:
        return UnitTracer(Step().to("meta"), frozenset(), calls, session).graph()


CALLS = (call(5, 7), call(5, 7, cache=Counter()), call(1, 1, cache=Counter(), mask=None))


def test_a_module_that_is_never_called_is_refused() -> None:
    with pytest.raises(TraceFailure, match="it is never called"), installed() as session:
        UnitTracer(Step(), frozenset(), (), session).sketch()


def test_one_token_is_a_branch_of_its_own() -> None:
    nodes = {node.name: node for node in traced(*CALLS).nodes}
    assert nodes["neg"].meta["guard"] == (Guard("cache is not None", True), Guard(nodes["eq"], True))
    assert Guard(nodes["eq"], False) in nodes["add"].meta["guard"]


def test_a_mask_that_is_handed_on_makes_no_branch() -> None:
    nodes = {node.name: node for node in traced(*CALLS).nodes}
    assert nodes["masked"].args == (nodes["first"], nodes["mask"])
    assert nodes["masked"].meta["guard"] == ()


def test_what_a_cache_counts_is_no_constant() -> None:
    nodes = {node.name: node for node in traced(*CALLS).nodes}
    assert nodes["add"].args[1] is nodes["forgotten"]


class Either(Step):
    def forward(self, x: Tensor, mask: Tensor | None = None, cache: Counter | None = None) -> Tensor:
        x = self.first(x)
        if cache is not None:
            x = x.neg()
        return x if mask is None else x * mask[..., None]


def test_a_mask_and_a_cache_may_both_be_left_out_or_given() -> None:
    with installed() as session:
        calls = (call(5, 7), call(5, 7, cache=Counter(), mask=None))
        graph = UnitTracer(Either().to("meta"), frozenset(), calls, session).graph()
    nodes = {node.name: node for node in graph.nodes}
    assert nodes["neg"].meta["guard"] == (Guard("cache is not None", True),)
    assert nodes["mul"].meta["guard"] == (Guard("mask is not None", True),)


class Counting(Step):
    def forward(self, x: Tensor, mask: Tensor | None = None, cache: Counter | None = None) -> Tensor:
        assert cache is not None
        seen: Any = cache.forgotten()
        seen = seen.clone() if isinstance(seen, torch.Tensor) else seen
        x = self.first(x) + seen
        return x


def test_a_cache_may_count_in_a_tensor() -> None:
    with installed() as session:
        given = call(5, 7, cache=Counter())
        graph = UnitTracer(Counting().to("meta"), frozenset(), (given,), session).graph()
    nodes = {node.name: node for node in graph.nodes}
    assert nodes["isinstance_1"].args == (nodes["forgotten"], torch.Tensor)
    assert nodes["clone"].meta["guard"] == (Guard(nodes["isinstance_1"], True),)
    chosen = nodes["add"].args[1]
    assert isinstance(chosen, fx.Node) and chosen.args == (nodes["isinstance_1"], nodes["clone"], nodes["forgotten"])


class Masking(nn.Module):
    """Attention's mask is boolean, or added to the scores."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        if mask.dtype == torch.bool:
            return x.masked_fill(~mask[..., None], 0)
        return x + mask[..., None] * torch.finfo(mask.dtype).max


def test_a_mask_of_the_other_kind_is_a_branch_too() -> None:
    given = tuple(Recorded({**r.named, "mask": r.named["mask"].bool()}, {}) for r in call(5, 7))
    with installed() as session:
        graph = UnitTracer(Masking(), frozenset(), (given,), session).graph()
    nodes = {node.name: node for node in graph.nodes}
    assert nodes["masked_fill"].meta["guard"] == (Guard(nodes["eq"], True),)
    assert nodes["add"].meta["guard"] == (Guard(nodes["eq"], False),)


class Turning(nn.Module):
    """Asks for its length under one attention only."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(_attn_implementation="sdpa")

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        if self.config._attn_implementation == "sdpa":
            return x * mask[..., None]
        length = x.shape[1]
        return x.view(-1, length, 2, 2)


def test_a_size_stays_one_under_each_attention() -> None:
    with installed() as session:
        graph = UnitTracer(Turning(), frozenset(), (call(5, 7), call(1, 1)), session).graph()
    nodes = {node.name: node for node in graph.nodes}
    assert nodes["view"].args[2] is nodes["getitem"] and nodes["getitem"].meta["names"] == ["length"]
    assert nodes["view"].meta["guard"] == (Guard(EAGER, True),)


class Hiding(Turning):
    """Reads its mask under one attention, and hands it on under the other."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if self.config._attn_implementation == "sdpa":
            return masked(x, mask)
        return x if mask is None else x + mask[..., None]


def test_a_mask_that_one_attention_reads_is_not_handed_on() -> None:
    with installed() as session:
        graph = UnitTracer(Hiding(), frozenset(), (call(5, 7), call(5, 7, mask=None)), session).graph()
    nodes = {node.name: node for node in graph.nodes}
    assert Guard("mask is not None", True) in nodes["add"].meta["guard"]


class Seeing(nn.Module):
    """Reads the sizes of two tensors, each of which is of one size in some calls."""

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        return x.flatten(1) * seen.sum() * x.shape[1] + seen.shape[0]


def test_two_calls_may_each_vary_where_the_other_does_not() -> None:
    """A token at a time with a mask for each example, and whole sequences with one mask for all."""

    def seeing(*sizes: tuple[tuple[int, ...], tuple[int, ...]]) -> Call:
        named = ({"x": torch.empty(*x, 4, device="meta"), "seen": torch.empty(s, device="meta")} for x, s in sizes)
        return tuple(Recorded(given, {}) for given in named)

    calls = (seeing(((2, 5), (1, 5)), ((3, 7), (1, 7))), seeing(((2, 1), (2, 6)), ((3, 1), (3, 9))))
    with installed() as session:
        graph = UnitTracer(Seeing(), frozenset(), calls, session).graph()
    x, seen = torch.ones(2, 3, 4), torch.ones(1, 3)
    module = fx.GraphModule(nn.Module(), graph)
    torch.testing.assert_close(module(x, seen), Seeing()(x, seen))


class State(NamedTuple):
    x: Tensor
    scale: Tensor


class Named(Block):
    def forward(self, state: State) -> State:  # type: ignore[override]
        return state._replace(x=super().forward(state.x) * state.scale)


class Renamed(Block):
    def forward(self, state: State) -> State:  # type: ignore[override]
        return State(super().forward(state.x) * state.scale, scale=state.scale)


@dataclass
class Sheet:
    x: Tensor
    scale: Tensor
    note: str = ""


class Filed(Block):
    def forward(self, state: Sheet) -> Sheet:  # type: ignore[override]
        return Sheet(super().forward(state.x) * state.scale, scale=state.scale)


@dataclass
class Output(ModelOutput):
    x: Tensor | None = None
    scale: Tensor | None = None


class Reported(Block):
    def forward(self, state: Sheet) -> Output:  # type: ignore[override]
        return Output(x=super().forward(state.x) * state.scale)


class Read(Reported): ...


@dataclass
class Doubling(Sheet):
    def __post_init__(self) -> None:
        self.x = self.x * 2


class Doubled(Block):
    def forward(self, state: Sheet) -> Sheet:  # type: ignore[override]
        return Doubling(super().forward(state.x), scale=state.scale)


class Overwritten(Block):
    def forward(self, state: Sheet) -> Sheet:  # type: ignore[override]
        state.x = super().forward(state.x)
        return state


class Mapped(Block):
    def forward(self, state: dict[str, Tensor]) -> dict[str, Tensor]:  # type: ignore[override]
        return {**state, "x": super().forward(state["x"])}


class Unnamed(Block):
    def forward(self, *args: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(args[0])


class Carrying(Net):
    def forward(self, ids: Tensor) -> Tensor:
        x, (block,) = self.embedding(ids), self.blocks
        if isinstance(block, Unnamed):
            result: Tensor = block(x)
        elif isinstance(block, Mapped):
            result = block({"x": x})["x"]
        else:
            made = State if isinstance(block, Named | Renamed) else Output if isinstance(block, Read) else Sheet
            result = block(made(x, x.new_ones(1))).x
        return result


@pytest.mark.parametrize("kind", [Named, Renamed, Filed, Reported, Read])
def test_what_has_fields_is_handed_on_as_it_is(kind: type[nn.Module]) -> None:
    block: Any = attached(Carrying([kind()]).eval()).get_submodule("blocks.0")
    made, like = (f(block, State(torch.ones(2, 3, WIDTH), torch.ones(1))) for f in (type(block).forward, kind.forward))
    assert type(made) is type(like) and torch.equal(made.x, like.x)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (
            Mapped,
            r"it goes through the keys of \{\*\*state.*, in Mapped.forward\), which may be others in another call",
        ),
        (Overwritten, "it sets the attribute x of state"),
        (Doubled, "an argument of type Doubling"),
        (Unnamed, r"it is given arguments without names, as \*args"),
    ],
)
def test_what_is_no_argument_that_a_trace_follows(kind: type[nn.Module], why: str) -> None:
    with pytest.raises(PeftcError, match=f"not traced: {kind.__name__}: {why}"):
        attached(Carrying([kind()]), {"method": "adapter"})
