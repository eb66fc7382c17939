"""Numbers that both examples agree on, though they are made of sizes: other inputs have others."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
from torch import nn

from peftc.graph.branches import assume
from peftc.trace import trace_model
from tests.trace.nets import WIDTH, Block, attached, made
from tests.trace.seen import seen, sites


class Windowed(Block):
    """Sums over windows of as many positions as come, and pads the last one; both examples have odd lengths."""

    def prepared(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        length, pad = x.shape[1], (2 - x.shape[1] % 2) % 2
        x = nn.functional.pad(x, (0, 0, 0, pad)).unflatten(1, (-1, 2)).cumsum(2).flatten(1, 2)
        return x[:, :length] if pad > 0 else x


class Shortest(Block):
    """Weakens by the least of two sizes."""

    def prepared(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return x / min(x.shape[1], 4) * max(x.shape[:2])


class Evened(Block):
    """Hands back what it was given, but for an even number of positions."""

    def prepared(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        if x.shape[1] % 2 == 0:
            x = 2 * x
        return x


@pytest.mark.parametrize("kind", [Windowed, Shortest, Evened])
def test_a_number_made_of_sizes_stays_one(kind: type[Block]) -> None:
    model = made(kind)
    changed = attached(model)
    for length in (1, 2, 3, 8, 130):
        ids = torch.arange(2 * length).reshape(2, length) % 11
        torch.testing.assert_close(changed(ids), model(ids))


class Repeating(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(x.shape[1] % 2):
            x = x * 2
        return x


def test_a_number_that_python_asks_for_is_checked() -> None:
    graph = seen(Repeating(), 4).graph
    assert [n.args[0].target.__name__ for n in graph.nodes if n.target is assume] == ["eq"]


class Setting(nn.Module):
    """Remembers a size, and how far it looks, by a method that cannot be followed."""

    def __init__(self) -> None:
        super().__init__()
        self.window = 3

    def remember(self, length: int) -> None:
        self.window = min(self.window, len(range(length)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.remember(x.shape[1] - 5)
        return x * self.window


def test_what_a_method_sets_is_checked() -> None:
    graph = seen(Setting(), 4).graph
    assert [n.args[0] for n in graph.nodes if n.target is assume] == ["self.window == 0"]


class PositionsLast(nn.Module):
    """A residual stream whose features stand before its positions."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 12), nn.Linear(12, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        turned: torch.Tensor = self.down(torch.relu(self.up(x)))
        return x.transpose(1, 2) + turned.transpose(1, 2)


def test_what_ends_in_positions_has_no_width() -> None:
    assert sites(PositionsLast(), WIDTH).keys() == {"ffn_up", "ffn_down"}


class Filled(Block):
    """Puts a tensor of one number in place of others: on every device but the examples' that may lie on the CPU."""

    def prepared(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        x = x.masked_fill(x < 0, torch.tensor(torch.finfo(x.dtype).eps))
        return x.masked_fill_(x > 1, torch.tensor(1.0))


class Limited(Block):
    """Puts what a dtype says as a number of Python's own in place of others; one that it wrote itself is its own."""

    def prepared(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        least = float(torch.finfo(x.dtype).resolution)
        return x.masked_fill(x < 0, least) + float("1e-6")


@pytest.mark.parametrize("kind", [Filled, Limited])
def test_a_number_that_fills_a_tensor_is_that_of_its_dtype(kind: type[Block]) -> None:
    attached(made(kind))
    block = next(unit for unit in trace_model(made(kind)).units if unit.name == kind.__name__)
    assert [n.args[2].op for n in block.graph.nodes if n.target == "masked_fill"] == ["call_function"]
    assert 1e-6 in [n.args[1] for n in block.graph.nodes if n.target is operator.add] or kind is Filled
