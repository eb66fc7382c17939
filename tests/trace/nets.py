"""A tiny model of blocks around an attention, as no library writes it: what tests of tracing change in one place."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

import peftc
from peftc.graph.sites import Trace
from tests.laws import spec

WIDTH = 8
IDS = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 8, 9, 1]])


class Attending(nn.Module):
    """Two heads, as any library writes them."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        q, k, v = (p(x).unflatten(-1, (2, 4)).transpose(1, 2) for p in (self.query, self.key, self.value))
        result: torch.Tensor = self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return result


class Block(nn.Module):
    """A residual attention, of the class that a subclass may name, and a feed-forward after it."""

    attends: type[Any] = Attending

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.up, self.down = self.attends(), nn.Linear(WIDTH, 12), nn.Linear(12, WIDTH)

    def forward(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        x = x + self.attention(x)
        result: torch.Tensor = x + self.down(torch.relu(self.up(self.prepared(x, **kwargs))))
        return result

    def prepared(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return x


class Net(nn.Module):
    """An embedding and blocks; what `given` names reaches each block as a keyword."""

    def __init__(self, blocks: list[nn.Module], given: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.embedding, self.blocks, self.given = nn.Embedding(11, WIDTH), nn.ModuleList(blocks), given or {}

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x, **self.given)
        result: torch.Tensor = x
        return result


def made(kind: type[nn.Module], given: dict[str, Any] | None = None) -> Net:
    torch.manual_seed(0)
    return Net([kind(), kind()], given).eval()


def sites(trace: Trace) -> list[tuple[str, ...]]:
    return [layer.site_names() for layer in trace.layers]


def attached(model: nn.Module, *entries: dict[str, Any]) -> nn.Module:
    """With lora on q and v and an adapter behind the feed-forward, proved as a compile proves it."""
    written = spec(
        [*entries] or [{"method": "lora", "at": ["q", "v"], "rank": 2}, {"method": "adapter", "bottleneck": 2}]
    )
    changed: nn.Module = peftc.attach(copy.deepcopy(model), written)
    torch.testing.assert_close(changed(IDS), model(IDS))
    return changed
