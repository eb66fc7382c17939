"""What a forward keeps on a module in it: such a module stays a call, and tracing leaves nothing there."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from peftc.trace import trace_model
from peftc.trace.record.state import unchanged
from tests.trace.nets import IDS, WIDTH, Block, attached, made


class Store(nn.Module):
    """Where the last input is kept."""

    last: torch.Tensor | None = None


class Keeping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.store = nn.Linear(WIDTH, WIDTH), Store()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.store.last is not None and self.store.last.shape[0] != x.shape[0]:
            self.store.last = None
        before, self.store.last = self.store.last, x
        result: torch.Tensor = self.linear(x)
        return result if before is None else result + 0 * before.mean()


class Kept(Block):
    def __init__(self) -> None:
        super().__init__()
        self.keeping = Keeping()

    def prepared(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        result: torch.Tensor = x + self.keeping(x)
        return result


def test_a_module_that_keeps_something_stays_a_call() -> None:
    trace = trace_model(made(Kept))
    unit = dict(trace.layers[0].units)["blocks.0"]
    assert [n.target for n in unit.graph.nodes if n.op == "call_module" and n.target == "keeping"] == ["keeping"]
    assert not [m for m in trace.model.modules() if isinstance(m, Store) and m.last is not None]
    attached(made(Kept))


class Hooking(Block):
    """Watches itself from its first run on."""

    watched = False

    def prepared(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        if not self.watched:
            self.up.register_forward_hook(lambda module, given, answer: None)
            self.watched = True
        return x


def seen(model: nn.Module) -> list[tuple[bool, int]]:
    """Of each block, whether it says that it is watched, and how many hooks there are."""
    return [(m.watched, len(m.up._forward_hooks)) for m in model.modules() if isinstance(m, Hooking)]


def test_a_hook_is_taken_back_with_the_note_that_it_is_there() -> None:
    model = made(Hooking)
    with unchanged(model):
        model(IDS)
        assert seen(model) == [(True, 1), (True, 1)]
    assert seen(model) == [(False, 0), (False, 0)]
