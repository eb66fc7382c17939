"""In a block that does not attend, what has a part in the cache mixes positions: the rest may be a feed-forward."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from peftc.trace import trace_model
from tests.trace.nets import WIDTH, Block, sites


class State:
    """The sum of what was read before."""

    def __init__(self) -> None:
        self.total: torch.Tensor | None = None

    def update(self, x: torch.Tensor) -> torch.Tensor:
        sums = x.cumsum(1) + (0 if self.total is None else self.total)
        self.total = sums[:, -1:]
        return sums


class Recurrent(nn.Module):
    """Wider than the feed-forward beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(WIDTH, 40), nn.Linear(40, WIDTH)

    def forward(self, x: torch.Tensor, state: State | None) -> torch.Tensor:
        x = torch.tanh(self.into(x))
        x = x.cumsum(1) if state is None else state.update(x)
        result: torch.Tensor = self.out(x)
        return result


class Mixing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mixer = Recurrent()

    def forward(self, x: torch.Tensor, state: State | None = None) -> torch.Tensor:
        result: torch.Tensor = x + self.mixer(x, state)
        return result


class Hybrid(Mixing):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 12), nn.Linear(12, WIDTH)

    def forward(self, x: torch.Tensor, state: State | None = None) -> torch.Tensor:
        x = super().forward(x, state)
        result: torch.Tensor = x + self.down(torch.relu(self.up(x)))
        return result


class Caching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.blocks = nn.Embedding(11, WIDTH), nn.ModuleList([Mixing(), Hybrid(), Block()])
        self.config = SimpleNamespace(use_cache=True)

    def forward(
        self, input_ids: torch.Tensor, past_key_values: list[State] | None = None, use_cache: bool = False
    ) -> BaseModelOutputWithPast:
        if use_cache and past_key_values is None:
            past_key_values = [State() for _ in self.blocks]
        x = self.table(input_ids)
        for index, block in enumerate(self.blocks):
            x = block(x, state=past_key_values[index] if past_key_values else None)
        kept: Any = past_key_values if use_cache else None
        return BaseModelOutputWithPast(last_hidden_state=x, past_key_values=kept)


def test_only_what_works_on_each_position_is_a_feed_forward() -> None:
    trace = trace_model(Caching())
    feed = ("ffn_up", "ffn_down", "ffn")
    assert sites(trace) == [(), feed, ("q", "k", "v", "o", "attention", "attention_output", *feed)]
    assert [layer.attends for layer in trace.layers] == [False, False, True]
    assert all(site.causal for _, unit in trace.layers[1].units for site in unit.sites)
    assert {path for path, _ in trace.others if "mixer" in path} == {
        f"blocks.{index}.mixer.{name}" for index in (0, 1) for name in ("into", "out")
    }


class Stepping(Recurrent):
    """With a cache it does without its first map's forward."""

    def forward(self, x: torch.Tensor, state: State | None) -> torch.Tensor:
        if state is None:
            return super().forward(x, None)
        result: torch.Tensor = self.out(state.update(torch.tanh(x @ self.into.weight.T)))
        return result


def test_a_step_that_passes_a_forward_by() -> None:
    model = Caching()
    model.blocks[0].mixer = Stepping()
    trace = trace_model(model)
    assert trace.fixed == {
        "blocks.0.mixer.into": "Stepping reads its weight itself, and may do without its forward",
    }  # fmt: skip


class Handed(Mixing):
    """The cache is none of its forward's parameters."""

    def forward(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:  # type: ignore[override]
        return super().forward(x, kwargs.get("state"))


def test_a_cache_among_further_keywords() -> None:
    model = Caching()
    model.blocks[0] = Handed()
    assert sites(trace_model(model))[0] == ()
