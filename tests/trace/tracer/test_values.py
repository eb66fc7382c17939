"""Values that no example has: what is None in all of them, and numbers."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from peftc.trace.tracer.values import TraceFailure
from tests.trace.nets import IDS, Attending, Block, attached, made
from tests.trace.seen import seen


class Pairing(Attending):
    """Returns a second stream where there is one."""

    def forward(self, x: torch.Tensor, **kwargs: Any) -> Any:
        return super().forward(x), None


class Streaming(Block):
    """Runs what its attention returns beside the first stream, if anything."""

    attends = Pairing

    def forward(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        attended, other = self.attention(x)
        x = x + attended
        if other is not None:
            x = x + torch.relu(self.up(other)).mean()
        result: torch.Tensor = x + self.down(torch.relu(self.up(x)))
        return result


def test_what_is_none_and_asked_for_is_checked() -> None:
    changed: Any = attached(made(Streaming))
    changed.blocks[0].attention.register_forward_hook(lambda module, given, returned: (returned[0], returned[0]))
    with pytest.raises(ValueError, match="Streaming is not compiled"):
        changed(IDS)


class Asserting(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.isnan().sum() == 0, "NaN"
        return x * 2


class Counting(nn.Module):
    """How many rows each of two experts takes, in numbers that no tensor holds any more."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> list[int]:
        chosen = self.router(x.flatten(0, 1)).argmax(-1)
        counts: list[int] = torch.nn.functional.one_hot(chosen, 2).sum(0).tolist()
        return counts


class Checked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.check, self.count = nn.Linear(4, 4), Asserting(), Counting()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows: torch.Tensor = self.check(self.first(x)).flatten(0, 1)
        out: torch.Tensor = rows.split(self.count(x))[0]
        return out


def test_what_a_module_asserts_of_numbers_holds() -> None:
    called = [node for node in seen(Checked(), 4).graph.nodes if node.target == "check"]
    assert [value.shape for value in called[0].meta["value"]] == [torch.Size((2, 5, 4)), torch.Size((3, 7, 4))]


def test_a_module_that_takes_numbers_out_of_tensors_is_run_on_real_ones() -> None:
    called = [node for node in seen(Checked(), 4, leaves=["count"]).graph.nodes if node.target == "count"]
    assert [sum(counts) for counts in called[0].meta["value"]] == [2 * 5, 3 * 7]


class Pair(tuple[torch.Tensor, torch.Tensor]):
    """Two tensors, with more than that to it."""


class Naming(nn.Module):
    def forward(self, x: torch.Tensor) -> Pair:
        return Pair((x, x * 2))


class Both(NamedTuple):
    pair: tuple[torch.Tensor, torch.Tensor]


class Nesting(nn.Module):
    def forward(self, x: torch.Tensor) -> Both:
        return Both((x, x * 2))


class Ungraded(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return x * 2


@pytest.mark.parametrize(
    ("module", "said"),
    [(Naming(), "returns a Pair"), (Nesting(), "returns a Both"), (Ungraded(), "turns off the gradients")],
)
def test_what_an_emitted_forward_would_lose_is_refused(module: nn.Module, said: str) -> None:
    with pytest.raises(TraceFailure, match=said):
        seen(module, 4)


class Choosing(nn.Module):
    """Returns indices that were chosen without gradients."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            chosen = x.argmax(-1)
        return x * 2, chosen


def test_indices_have_no_gradients_to_lose() -> None:
    assert [node.target for node in seen(Choosing(), 4).graph.nodes if node.op == "call_method"] == ["argmax"]


class Splitting(nn.Module):
    def forward(self, x: torch.Tensor) -> Any:
        return x.chunk(2, -1)


def test_a_tuple_of_torch_is_returned_as_it_is() -> None:
    assert seen(Splitting(), 4).graph.find_nodes(op="output")


def span(x: torch.Tensor, most: int) -> Any:
    return torch.tensor(min(x.shape[1], most))


class Spanning(nn.Module):
    """Takes as many of its rows as a tensor says, and as many of its places as it has."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.zeros(9, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        reach = span(x, 6)
        taken = self.rows[:reach].sum(0)
        return x + taken * torch.clamp(x, 0, reach - 1)


def test_a_tensor_that_is_made_of_one_number_holds_it() -> None:
    graph = seen(Spanning(), 4).graph
    taken = next(node for node in graph.nodes if node.name == "getitem")
    assert [value.shape[0] for value in taken.meta["value"]] == [5, 6]
    clamped = next(node for node in graph.nodes if node.target is torch.clamp)
    assert [value.shape for value in clamped.meta["value"]] == [torch.Size((2, 5, 4)), torch.Size((3, 7, 4))]


class Measuring(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads: tuple[torch.Tensor, ...] = x.unflatten(-1, (2, 2)).unbind(-2)
        return x.reshape(len(x) * len(x[0]), -1).view(len(x), -1, len(heads) * 2)


def test_the_length_of_a_tensor_is_a_size() -> None:
    """Not the number that it is in the examples; that of a tuple is a number."""
    graph = seen(Measuring(), 4).graph
    assert [node.meta["value"] for node in graph.nodes if node.target is len] == [(2, 3), (5, 7), (2, 3)]
    assert [node.args[-1] for node in graph.nodes if node.target == "view"] == [4]
