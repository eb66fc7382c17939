"""Whether a model sees what comes later: asked of its forward, where it has weights."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from peftc.trace.inputs import is_causal


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
