"""What a model is called with, and whether it sees what comes later: asked of its forward."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from peftc.trace.feeds import POINTS
from peftc.trace.inputs import Scenario, inputs, is_causal


class Reader(nn.Module):
    """Sums up what it has read so far, or everything."""

    def __init__(self, backwards: bool) -> None:
        super().__init__()
        self.table, self.backwards = nn.Embedding(11, 4), backwards

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        read: torch.Tensor = self.table(input_ids)
        return read.flip(1).cumsum(1).flip(1) if self.backwards else read.cumsum(1)


class Pair(nn.Module):
    """An encoder, and a decoder that will not do without ids of its own."""

    def __init__(self, backwards: bool) -> None:
        super().__init__()
        self.encoder, self.config = Reader(backwards), SimpleNamespace(is_encoder_decoder=True)

    def get_encoder(self) -> nn.Module:
        return self.encoder

    def forward(self, input_ids: torch.Tensor, decoder_input_ids: torch.Tensor | None = None) -> torch.Tensor:
        assert decoder_input_ids is not None
        read: torch.Tensor = self.encoder(input_ids)
        own: torch.Tensor = self.encoder(decoder_input_ids)
        return own + read.sum(1, keepdim=True)


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("kind", [Reader, Pair])
def test_a_model_with_both_is_asked_by_its_encoder(kind: type[Reader | Pair], backwards: bool) -> None:
    assert is_causal(kind(backwards)) is not backwards


class Summing(nn.Module):
    """Goes on from a sum of its own, which it hands back where it is asked to keep it; `norms` come back always."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 4, device="meta")

    def forward(
        self, input_ids: torch.Tensor, norms: Any = None, total: Any = None, use_cache: bool = False
    ) -> SimpleNamespace:
        read = self.table(input_ids).cumsum(1) + (0 if total is None else total)
        return SimpleNamespace(logits=read, norms=read.norm(dim=-1), total=read[:, -1:] if use_cache else None)


@pytest.mark.parametrize("cache", ["none", "empty", "filled", "single"])
def test_a_cache_is_what_comes_back_only_where_one_is_kept(cache: Any) -> None:
    given = inputs(Summing(), Scenario(mask=True, cache=cache), POINTS[0], nullcontext)
    assert given is not None
    continued = {"total"} if cache in ("filled", "single") else set()
    assert given.keys() == {"input_ids", "use_cache", *continued}
    assert given["use_cache"] is (cache != "none")
