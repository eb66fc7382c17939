"""States whose examples have no axis of their own: what averages over the sequence would average over the batch."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PixtralVisionConfig,
    PixtralVisionModel,
)

import peftc
from peftc.errors import PeftcError
from tests.laws import spec
from tests.trace.nets import WIDTH, Block, Net, attached, made

TINY: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 20}


class Headed(Net):
    """One head over positions, one over an example, one that nothing calls."""

    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__(blocks)
        self.each, self.pooled, self.idle = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.each(super().forward(ids))
        result: torch.Tensor = x + self.pooled(x[:, 0])[:, None]
        return result


class Grid(Block):
    """States of pictures: (batch, height, width, features)."""

    def forward(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        grid = x.unflatten(1, (1, -1))
        grid = grid + self.attention(x).view_as(grid)
        result: torch.Tensor = (grid + self.down(torch.relu(self.up(grid)))).flatten(1, 2)
        return result


def refused(model: nn.Module, entry: dict[str, Any], message: str = "is not known to have batch and length") -> None:
    with pytest.raises(PeftcError, match=message):
        peftc.attach(model, spec([entry]))


@pytest.mark.parametrize(
    "entry", [{"method": "adapter"}, {"method": "lora"}, {"method": "ia3"}, {"method": "prefix", "length": 2}]
)
def test_examples_that_are_packed_in_one_sequence(entry: dict[str, Any]) -> None:
    pictures = PixtralVisionModel(PixtralVisionConfig(**TINY, image_size=32, patch_size=8)).eval()
    refused(pictures, {**entry, "gate": "sequence"})
    refused(pictures, {**entry, "gate": "masked"})
    peftc.attach(pictures, spec([{**entry, "gate": "constant"}]))


def test_a_head_of_pooled_states_and_one_that_nothing_calls() -> None:
    model = Headed([Block(), Block()]).eval()
    for name in ("pooled", "idle"):
        refused(copy.deepcopy(model), {"method": "lora", "modules": [name], "gate": "sequence"})
    attached(model, {"method": "lora", "modules": ["each"], "gate": "sequence"})
    attached(model, {"method": "lora", "modules": ["pooled"], "gate": "token"})
    bert = BertForSequenceClassification(BertConfig(**TINY, vocab_size=50))
    refused(bert, {"method": "lora", "modules": ["bert.pooler.dense"], "gate": "sequence"})


def test_a_head_that_would_see_the_future() -> None:
    llama = LlamaForCausalLM(LlamaConfig(**TINY, vocab_size=50))
    refused(llama, {"method": "lora", "modules": ["lm_head"], "gate": "sequence"}, "lm_head of a causal unit")


def test_a_mean_over_one_of_several_axes_of_positions() -> None:
    refused(made(Grid), {"method": "adapter", "gate": "sequence"})
    attached(made(Grid), {"method": "adapter", "gate": "token"})
