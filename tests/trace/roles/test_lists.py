"""Blocks in lists of lists, and in sequences beside another tower's."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from peftc.trace import trace_model
from tests.trace.nets import WIDTH, Attending, Block, attached
from tests.trace.roles.test_towers import Feed, Normed


class Alternating(nn.Module):
    """A list of lists, each of a norm and what it feeds: attentions and feed-forwards in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, WIDTH)
        pairs = ([nn.LayerNorm(WIDTH), part] for part in (Attending(), Feed(), Attending(), Feed()))
        self.layers = nn.ModuleList(nn.ModuleList(pair) for pair in pairs)

    def forward(self, ids: Tensor) -> Tensor:
        x: Tensor = self.embedding(ids)
        for pair in self.layers:
            norm, part = cast(nn.ModuleList, pair)
            x = x + part(norm(x))
        return x


def test_every_list_of_a_list_has_its_blocks() -> None:
    changed: Any = attached(Alternating())
    assert [layer.path for layer in trace_model(Alternating()).layers] == [f"layers.{index}.1" for index in range(4)]
    assert {path for path in changed.added if path.endswith("adapter")} == {f"layers.{i}.1.ffn_adapter" for i in (1, 3)}
    assert {path for path in changed.added if path.endswith("query_lora")} == {
        f"layers.{i}.1.query_lora" for i in (0, 2)
    }


class Staged(nn.Module):
    """A list of sequences, of a map and two blocks each."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, WIDTH)
        stages = (nn.Sequential(nn.Linear(WIDTH, WIDTH), Normed(), Normed()) for _ in range(2))
        self.stages = nn.ModuleList(stages)

    def forward(self, ids: Tensor) -> Tensor:
        x: Tensor = self.embedding(ids)
        for stage in self.stages:
            x = stage(x)
        return x


def test_a_sequence_of_blocks_in_a_list_is_a_stage() -> None:
    inner = [f"stages.{stage}.{index}" for stage in range(2) for index in (1, 2)]
    assert [layer.path for layer in trace_model(Staged()).layers] == inner
    changed: Any = attached(Staged())
    assert {path for path in changed.added if path.endswith("adapter")} == {f"{path}.ffn_adapter" for path in inner}


class Pooling(Block):
    """Learnt queries that read a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.queries, self.norm = nn.Parameter(torch.ones(1, 2, WIDTH)), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor, **kwargs: object) -> Tensor:
        return super().forward(torch.cat([self.queries.expand(x.shape[0], -1, -1), self.norm(x)], 1))[:, :2]


class Pooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, WIDTH)
        self.enc, self.dec = nn.Sequential(Normed(), Normed()), nn.Sequential(Pooling(), nn.Linear(WIDTH, 4))

    def forward(self, ids: Tensor) -> Tensor:
        made: Tensor = self.dec(self.enc(self.embedding(ids)))
        return made


def test_what_holds_a_tower_is_in_no_other() -> None:
    assert [(layer.tower, layer.path) for layer in trace_model(Pooled()).layers] == [
        ("enc", "enc.0"), ("enc", "enc.1"), ("dec", "dec"),
    ]  # fmt: skip
    attached(Pooled(), {"method": "lora"}, {"method": "adapter", "towers": "enc"})


class Folded(Attending):
    """Its heads are a part of the batch, so that three axes of weights say nothing of attention."""

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        parts = (part(x).unflatten(-1, (2, 4)).transpose(1, 2) for part in (self.query, self.key, self.value))
        q, k, v = (part.reshape(-1, x.shape[1], 4) for part in parts)
        mixed = torch.bmm((q @ k.transpose(1, 2)).softmax(-1), v).unflatten(0, (-1, 2))
        result: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return result


class Wrapped(nn.Module):
    """A norm, and what reads it; its model adds what that makes."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.norm, self.part = nn.LayerNorm(WIDTH), part

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        made: Tensor = self.part(self.norm(x), **kwargs)
        return made


class Pairs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, WIDTH)
        pairs = (nn.ModuleList([Wrapped(Folded()), Feed()]) for _ in range(2))
        self.layers = nn.ModuleList(pairs)

    def forward(self, ids: Tensor) -> Tensor:
        x: Tensor = self.embedding(ids)
        for pair in self.layers:
            for part in cast(nn.ModuleList, pair):
                x = x + part(x)
        return x


def test_heads_in_the_batch_attend_where_nothing_else_does() -> None:
    sites = {layer.path: set(layer.site_names()) for layer in trace_model(Pairs()).layers}
    feeds, attends = {"ffn_up", "ffn_down", "ffn"}, {"q", "k", "v", "o", "attention"}
    assert sites == {f"layers.{i}.{j}": (attends, feeds)[j] for i in range(2) for j in range(2)}
    attached(Pairs())
