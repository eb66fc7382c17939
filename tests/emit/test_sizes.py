"""Sizes that the examples share are read as in the source."""

from __future__ import annotations

import torch
from torch import nn

from peftc.emit.statements import forward
from peftc.graph.branches import Guard
from tests.trace.seen import seen


class Flat(nn.Module):
    """Two views whose last size is that of x, said three times; the second by a variable of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.reshape(-1, x.shape[-1])
        _, channels = y.size()
        leading = y.shape[:-1]
        return y.view(*leading, -1) + x.sum() + y.view(-1, 1, channels).sum()


class Forgotten(nn.Module):
    """A size of what has another value by then."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x + 1
        width = [y.shape[-1]]
        y = y.sum(-1)
        return y[..., None].expand(*y.shape, width[0])


def test_a_size_is_read_where_the_source_reads_it() -> None:
    assert forward(Flat, seen(Flat(), 4).graph, {}).lines[1:] == (
        "    y = x.reshape(-1, x.shape[-1])",
        "    _, channels = y.size()",
        "    leading = y.shape[:-1]",
        "    return y.view(*leading, -1) + x.sum() + y.view(-1, 1, channels).sum()",
    )


def test_what_is_not_at_hand_is_a_number() -> None:
    lines = forward(Forgotten, seen(Forgotten(), 4).graph, {}).lines
    assert lines[-1].endswith(".expand(*y.shape, 4)")


def test_a_size_of_a_branch_is_a_number_outside() -> None:
    graph = seen(Flat(), 4).graph
    for node in (n for n in graph.nodes if n.target in ("reshape", "size")):
        node.meta["guard"] = (Guard("x is not None", True),)
    assert "y.view(-1, 1, 4)" in "".join(forward(Flat, graph, {}).lines)
