"""What a model is called with, and whether it sees what comes later: asked of its forward."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from peftc.trace.record.calls import record
from peftc.trace.record.feeds import POINTS
from peftc.trace.record.inputs import Scenario, inputs


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


@pytest.mark.parametrize("cache", ["none", "empty", "first", "filled", "single"])
def test_a_cache_is_what_comes_back_only_where_one_is_kept(cache: Any) -> None:
    given = inputs(Summing(), Scenario(mask=True, cache=cache), POINTS[0], nullcontext)
    assert given is not None
    continued = {"total"} if cache in ("filled", "single") else set()
    assert given.keys() == {"input_ids", "use_cache", *continued}
    assert given["use_cache"] is (cache != "none")


class Checking(Summing):
    """Goes on only where it knows every id."""

    def forward(
        self, input_ids: torch.Tensor, norms: Any = None, total: Any = None, use_cache: bool = False
    ) -> SimpleNamespace:
        if total is not None and not (input_ids < len(self.table.weight)).all():
            raise ValueError("what is this?")
        return super().forward(input_ids, norms, total, use_cache)


@pytest.mark.parametrize("cache", ["filled", "single"])
def test_what_a_model_asks_of_numbers_before_it_goes_on_is_so(cache: Any) -> None:
    model = Checking()
    found = record(model, Scenario(mask=True, cache=cache), POINTS[0], {})
    assert found is not None and "total" in found.calls[model].named


class Eye(nn.Module):
    """An encoder of pictures."""

    main_input_name = "pixel_values"

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, device="meta"))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        assert pixel_values.dim() == 4
        return self.scale * pixel_values


class Telling(nn.Module):
    """A decoder that will not have both a picture and what its encoder said about it."""

    def __init__(self) -> None:
        super().__init__()
        self.eye, self.config = Eye(), SimpleNamespace(is_encoder_decoder=True, use_cache=True)

    def get_encoder(self) -> nn.Module:
        return self.eye

    def forward(
        self, pixel_values: Any = None, input_ids: Any = None, decoder_input_ids: Any = None,
        encoder_outputs: Any = None, past_key_values: Any = None, use_cache: bool = False,
    ) -> SimpleNamespace:  # fmt: skip
        assert (pixel_values is None) != (encoder_outputs is None)
        return SimpleNamespace(past_key_values=SimpleNamespace(layers=[]))


@pytest.mark.parametrize("cache", ["empty", "first", "filled", "single"])
def test_what_an_encoder_said_comes_in_place_of_the_picture(cache: Any) -> None:
    given = inputs(Telling(), Scenario(mask=True, cache=cache), POINTS[0], nullcontext)
    assert given is not None
    assert given["encoder_outputs"].dim() == 4
    assert "pixel_values" not in given


class Reading(nn.Module):
    """An encoder that calls the ids by a name of its own, and does not say which."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 4, device="meta")

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        states: torch.Tensor = self.table(words)
        return states


class Retelling(nn.Module):
    """A decoder beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.reading, self.config = Reading(), SimpleNamespace(is_encoder_decoder=True, use_cache=True)

    def get_encoder(self) -> nn.Module:
        return self.reading

    def forward(
        self, input_ids: Any = None, decoder_input_ids: Any = None, encoder_outputs: Any = None,
        past_key_values: Any = None, use_cache: bool = False,
    ) -> SimpleNamespace:  # fmt: skip
        return SimpleNamespace(past_key_values=SimpleNamespace(layers=[]))


def test_an_encoder_that_does_not_name_its_input_is_given_what_its_model_reads() -> None:
    given = inputs(Retelling(), Scenario(mask=True, cache="single"), POINTS[0], nullcontext)
    assert given is not None
    assert given["encoder_outputs"].shape[-1] == 4


class Oneself(Retelling):
    """It has its encoder in no place of its own: transformers says that it is the model itself."""

    def get_encoder(self) -> nn.Module:
        return self


def test_a_model_is_no_encoder_of_its_own() -> None:
    given = inputs(Oneself(), Scenario(mask=True, cache="single"), POINTS[0], nullcontext)
    assert given is not None and "encoder_outputs" not in given
