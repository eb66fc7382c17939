"""Several traces as one graph: what is chosen between values of a branch is chosen inside it."""

from __future__ import annotations

import operator
from itertools import permutations

import torch
from torch import fx, nn
from transformers import BertConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bert.modeling_bert import eager_attention_forward

from peftc.emit.statements import forward
from peftc.graph.branches import LiftedStr, assume, choose, lookup
from peftc.trace.record.calls import Recorded
from peftc.trace.tracer.patches import installed
from peftc.trace.tracer.units import UnitTracer


class Masking(nn.Module):
    """Which number hides depends on the dtype, and on whether there is a mask."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("low", "lower", "lowest", "least"):
            self.register_buffer(name, torch.tensor(-1.0, device="meta"))

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        if x.dtype == torch.float16:
            own, other = self.get_buffer("low").half(), self.get_buffer("lower").half()
        else:
            own, other = self.get_buffer("lowest"), self.get_buffer("least")
        return torch.where(x > 0, x, own if mask is None else other)


def test_a_choice_stands_where_its_values_do() -> None:
    states, masks = ([torch.empty(n, n + 3, 4, device="meta") for n in (2, 3)] for _ in range(2))
    without = tuple(Recorded({"x": x}, {}) for x in states)
    given = tuple(Recorded({"x": x, "mask": m}, {}) for x, m in zip(states, masks, strict=True))
    with installed() as session:
        graph = UnitTracer(Masking(), frozenset(), [without, given], session).graph()
    choices = [node for node in graph.nodes if node.target is choose]
    assert choices
    for choice in choices:
        guards = {n.meta["guard"] for n in choice.all_input_nodes if n.target is not choose and n is not choice.args[0]}
        within = [guard for guard in guards if all(g.condition != choice.args[0] for g in guard)]
        assert all(choice.meta["guard"] == guard for guard in within)


class Sending(nn.Module):
    """Looks its attention up, and does without it under one name."""

    def __init__(self) -> None:
        super().__init__()
        self.config = BertConfig()
        self.config._attn_implementation = "sdpa"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        if self.config._attn_implementation == "eager":
            return x.transpose(1, 2)
        out: torch.Tensor = attend(self, x, x, x, None)[0]
        return out


def test_what_reads_one_attribute_in_both_traces_is_one() -> None:
    call = tuple(Recorded({"x": torch.empty(n, 2, n + 3, 4, device="meta")}, {}) for n in (2, 3))
    with installed() as session:
        graph = UnitTracer(Sending(), frozenset(), [call], session).graph()
    (found,) = (node for node in graph.nodes if node.target is lookup)
    assert isinstance(found.args[0], LiftedStr) and found.args[0].source == "self.config._attn_implementation"


class Finding(nn.Module):
    """Takes a mask out of a mapping, which may hold None instead."""

    def forward(self, x: torch.Tensor, masks: dict[str, torch.Tensor | None] | None = None) -> torch.Tensor:
        mask = (masks or {}).get("mask")
        if mask is not None:
            x = x * mask[:, None]
        return x + 1


def test_what_a_mapping_holds_in_some_calls_only_is_a_condition() -> None:
    states = [torch.empty(n, n + 3, 4, device="meta") for n in (2, 3)]
    given = tuple(Recorded({"x": x, "masks": {"mask": x[:, 0]}}, {}) for x in states)
    without = tuple(Recorded({"x": x, "masks": {"mask": None}}, {}) for x in states)
    for calls in ([given, without], [without, given]):
        with installed() as session:
            graph = UnitTracer(Finding(), frozenset(), calls, session).graph()
        (product,) = (node for node in graph.nodes if node.target is operator.mul)
        (guard,) = product.meta["guard"]
        assert isinstance(guard.condition, fx.Node)
        assert (guard.condition.target, guard.branch) == (operator.is_not, True)
        assert [str(n.args[0]) for n in graph.nodes if n.target is assume] == ["masks is None", "masks"]


class Widening(Sending):
    """Computes in single precision under one attention alone."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.config._attn_implementation == "eager":
            scores = x @ x.transpose(-1, -2)
            if scores.dtype == torch.float16 or scores.dtype == torch.bfloat16:
                scores = scores.float()
            x = scores.softmax(-1, dtype=x.dtype) @ x
        return x + 1


def test_a_dtype_is_asked_for_under_the_attention_that_asks() -> None:
    call = tuple(Recorded({"x": torch.empty(n, 2, n + 3, 4, device="meta")}, {}) for n in (2, 3))
    with installed() as session:
        graph = UnitTracer(Widening(), frozenset(), [call], session).graph()
    printed = forward(Widening, graph, {}).lines
    assert [line.strip() for line in printed if "if " in line] == [
        'if self.config._attn_implementation == "eager":',
        "if scores.dtype == torch.float16 or scores.dtype == torch.bfloat16:",
    ]


class Resuming(nn.Module):
    """Goes on from a state that is kept, by a function of its own where one token comes."""

    def forward(self, x: torch.Tensor, kept: torch.Tensor | None = None) -> torch.Tensor:
        state = kept.cumsum(1) if kept is not None else None
        if kept is not None and x.shape[1] == 1:
            return torch.tanh(x) * kept
        return x + torch.nn.functional.dropout(x if state is None else state, 0.0)


def test_what_reads_a_state_is_made_only_where_there_is_one() -> None:
    without, many, one = (
        tuple(
            Recorded(
                {
                    "x": torch.empty(n, m, 4, device="meta"),
                    **({"kept": torch.empty(n, 1, 4, device="meta")} if k else {}),
                },
                {},
            )
            for n, m in ((2, length), (3, length + (length > 1)))
        )
        for length, k in ((5, False), (5, True), (1, True))
    )
    with installed() as session:
        graph = UnitTracer(Resuming(), frozenset(), [without, many, one], session).graph()
    reading = [n for n in graph.nodes if n.target == "cumsum"]
    assert reading
    assert all(any(g.condition == "kept is not None" for g in n.meta["guard"]) for n in reading)


class Casting(nn.Module):
    """Asks for dtypes as often as every combination is traced, and for one more beyond one of them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x / 2 if x.dtype == torch.float16 else x
        x = x / 3 if x.dtype == torch.float16 else x
        if x.dtype != torch.float32 and x.dtype != torch.float64:
            x = x / 4
        return x / 5 if x.dtype == torch.float16 else x


def test_a_dtype_asked_for_beyond_another_leaves_the_others_open() -> None:
    call = tuple(Recorded({"x": torch.empty(n, n + 3, 4, device="meta")}, {}) for n in (2, 3))
    with installed() as session:
        graph = UnitTracer(Casting(), frozenset(), [call], session).graph()
    checks = [node.args[0] for node in graph.nodes if node.target is assume]
    assert [check.target for check in checks if isinstance(check, fx.Node)] == [operator.ne]


class Recalling(nn.Module):
    """Takes what it has made before, where that is kept and done; makes it, and adds what is kept, elsewhere."""

    def forward(self, x: torch.Tensor, kept: dict[str, torch.Tensor | None] | None = None) -> torch.Tensor:
        done = kept.get("done") if kept is not None else None
        if kept is not None and done is not None:
            states = done
        else:
            states = x.exp()
            if kept is not None:
                states = states.cumsum(1)
        return states.tanh()


def test_a_choice_is_made_wherever_it_is_read() -> None:
    states = [torch.empty(n, n + 3, 4, device="meta") for n in (2, 3)]
    without = tuple(Recorded({"x": x}, {}) for x in states)
    first, again = (
        tuple(Recorded({"x": x, "kept": {"done": x if done else None, "other": x}}, {}) for x in states)
        for done in (False, True)
    )
    for calls in permutations([without, first, again]):
        with installed() as session:
            graph = UnitTracer(Recalling(), frozenset(), list(calls), session).graph()
        (answer,) = (node for node in graph.nodes if node.target == "tanh")
        assert not answer.meta["guard"]
        assert not answer.args[0].meta["guard"]
