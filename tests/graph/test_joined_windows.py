"""A prefix in attentions with windows, or groups of heads, on an axis of their own, and with folded heads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import peftc
from tests.laws import move, spec
from tests.trace.nets import WIDTH, Block, Net

LENGTH = 3


class Strided(nn.Module):
    """Two windows, of every other position: (batch, heads, windows, length, width)."""

    heads = 2

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        made: Tensor = self.out(self.mixed(self.qkv(nn.functional.pad(x, (0, 0, 0, x.shape[1] % 2)))))
        return made[:, : x.shape[1]]

    def mixed(self, qkv: Tensor) -> Tensor:
        q, k, v = qkv.reshape(len(qkv), -1, 2, 3, self.heads, WIDTH // self.heads).permute(3, 0, 4, 2, 1, 5).unbind(0)
        weights = (q * 0.5 @ k.transpose(-2, -1)).softmax(-1)
        return (weights @ v).permute(0, 3, 2, 1, 4).reshape(len(qkv), -1, WIDTH)

    @staticmethod
    def windows(length: int) -> Tensor:
        """Which window each position is of."""
        return torch.arange(length) % 2


class OneHead(Strided):
    heads = 1


class WindowsFirst(Strided):
    """(batch, windows, heads, length, width)."""

    def mixed(self, qkv: Tensor) -> Tensor:
        q, k, v = qkv.reshape(len(qkv), -1, 2, 3, self.heads, WIDTH // self.heads).permute(3, 0, 2, 4, 1, 5).unbind(0)
        weights = (q @ k.transpose(-2, -1) * 0.5).softmax(-1)
        return (weights @ v).permute(0, 3, 1, 2, 4).reshape(len(qkv), -1, WIDTH)


class Blocks(Strided):
    """Windows of two neighbours, of which a longer example has more: (batch, windows, length, heads, width)."""

    def mixed(self, qkv: Tensor) -> Tensor:
        q, k, v = (part.view(len(qkv), -1, 2, self.heads, WIDTH // self.heads) for part in qkv.chunk(3, -1))
        weights = torch.einsum("...qhd,...khd->...hqk", q, k).mul(0.5).softmax(-1)
        mixed: Tensor = torch.einsum("...hqk,...khd->...qhd", weights, v)
        return mixed.reshape(len(qkv), -1, WIDTH)

    @staticmethod
    def windows(length: int) -> Tensor:
        return torch.arange(length) // 2


class Grouped(Strided):
    """Two queries for each key: (batch, heads, groups, length, width), of keys (batch, heads, 1, length, width)."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 2 * WIDTH)

    def mixed(self, qkv: Tensor) -> Tensor:
        q, k, v = qkv.split([WIDTH, WIDTH // 2, WIDTH // 2], -1)
        q = q.view(len(qkv), -1, 2, 2, 2).permute(0, 2, 3, 1, 4)
        k, v = (part.view(len(qkv), -1, 2, 1, 2).permute(0, 2, 3, 1, 4) for part in (k, v))
        mixed: Tensor = (q * 0.5 @ k.transpose(-2, -1)).softmax(-1) @ v
        return mixed.permute(0, 3, 1, 2, 4).reshape(len(qkv), -1, WIDTH)


class Folded(Strided):
    """(batch * heads, length, width), and no windows: what is near adds to the scores, in their shape."""

    def mixed(self, qkv: Tensor) -> Tensor:
        length = qkv.shape[1]
        parts = qkv.reshape(len(qkv), length, 3, 2, 4).permute(2, 0, 3, 1, 4)
        q, k, v = parts.reshape(3, len(qkv) * 2, length, 4).unbind(0)
        scores = q * 0.5 @ k.transpose(-2, -1)
        near = self.near(length, qkv.device).expand(len(q), -1, -1).reshape_as(scores)
        mixed: Tensor = (scores + near).softmax(-1) @ v
        return mixed.view(len(qkv), 2, length, 4).transpose(1, 2).flatten(2)

    @staticmethod
    def near(length: int, device: torch.device | None = None) -> Tensor:
        places = torch.arange(length, device=device)
        return -(places[:, None] - places).abs().float()

    @staticmethod
    def windows(length: int) -> Tensor:
        return torch.zeros(length)


def holding(kind: type[nn.Module]) -> Block:
    """A block that attends in this way."""
    block = Block()
    block.attention = kind()
    return block


def by_hand(module: Any, x: Tensor, tables: list[Tensor]) -> Tensor:
    """One attention over all positions, in which those of other windows are hidden; tables (batch, length, width)."""
    qkv = module.qkv(nn.functional.pad(x, (0, 0, 0, x.shape[1] % 2)))
    length, heads = qkv.shape[1], module.heads
    if isinstance(module, Grouped):
        heads, windows = 4, torch.zeros(length)
        q, *rest = qkv.split([WIDTH, WIDTH // 2, WIDTH // 2], -1)
        k, v, *tables = (t.unflatten(-1, (2, 2)).repeat_interleave(2, 2).flatten(2) for t in (*rest, *tables))
    else:
        windows = module.windows(length)
        q, k, v = qkv.chunk(3, -1)
    bias = torch.zeros(length, length).masked_fill(windows[:, None] != windows, -torch.inf)
    bias += module.near(length) if isinstance(module, Folded) else 0
    keys, values = (torch.cat(both, 1) for both in zip(tables, (k, v), strict=True))
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, keys, values))
    weights = (q @ k.transpose(-1, -2) * 0.5 + nn.functional.pad(bias, (LENGTH, 0))).softmax(-1)
    result: Tensor = module.out((weights @ v).transpose(1, 2).flatten(2))
    return result[:, : x.shape[1]]


@pytest.mark.parametrize("gate", [None, "sequence"])
@pytest.mark.parametrize("kind", [Strided, OneHead, WindowsFirst, Blocks, Grouped, Folded])
def test_every_window_reads_the_prefix(kind: type[nn.Module], gate: str | None) -> None:
    torch.manual_seed(0)
    base, entry = Net([holding(kind), holding(kind)]).eval(), {"method": "prefix", "length": LENGTH}
    model: Any = peftc.attach(base, spec([entry | ({"gate": gate} if gate else {})]))
    move((p for n, p in model.named_parameters() if "_prefix" in n), by=1.0)
    x = torch.randn(2, 8 if gate else 7, WIDTH)  # padding counts in a gate's mean, as in what attends
    for block in model.blocks:
        (owner,) = (module for module in block.modules() if "attention_prefix" in dict(module.named_children()))
        by = owner.attention_prefix_gate(x).view(-1, 1, 1) if gate else torch.ones(2, 1, 1)
        tables = [table * by for table in owner.attention_prefix()]
        assert tables[0].shape == (2, LENGTH, WIDTH // 2 if kind is Grouped else WIDTH)
        attended = x + by_hand(block.attention, x, tables)
        found, wanted = block(x), attended + block.down(torch.relu(block.up(attended)))
        torch.testing.assert_close(found, wanted)
        learnt = [p for n, p in block.named_parameters() if "_prefix" in n]
        torch.testing.assert_close(
            torch.autograd.grad(found.square().sum(), learnt), torch.autograd.grad(wanted.square().sum(), learnt)
        )
