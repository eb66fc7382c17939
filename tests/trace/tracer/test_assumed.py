"""What every call of the examples gives, or none: another call is checked where it would make a difference."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText

import peftc
from peftc.graph.branches import assume
from peftc.trace import trace_model
from tests.laws import spec
from tests.trace.nets import IDS, WIDTH, Block, Net, attached, made


class Shifted(Block):
    """Adds what it may be given to read beside its states."""

    def forward(self, x: Tensor, shift: Tensor | None = None, **kwargs: Any) -> Any:
        x = super().forward(x)
        return x if shift is None else x + shift


class Asked(Block):
    """Has no default for what it can do without: its caller may hand on None."""

    def forward(self, x: Tensor, shift: Tensor | None, **kwargs: Any) -> Any:  # type: ignore[override]
        x = super().forward(x)
        return x if shift is None else x + shift


class Handing(Block):
    """Hands what it may be given on to a function that takes None as well."""

    def forward(self, x: Tensor, shift: Tensor | None = None, **kwargs: Any) -> Any:
        return nn.functional.layer_norm(super().forward(x), (x.shape[-1],), shift)


class Bound(Block):
    """Has a default for what it cannot do without."""

    def forward(self, x: Tensor, shift: Tensor | None = None, **kwargs: Any) -> Any:
        return super().forward(x) + shift.tanh()  # type: ignore[union-attr]


class Shifting(Net):
    def __init__(self, blocks: list[Any]) -> None:
        super().__init__(blocks)
        self.shift = nn.Parameter(torch.randn(self.embedding.embedding_dim))

    def forward(self, ids: Tensor) -> Any:
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x, self.shift)
        return x


def checks(model: nn.Module) -> list[str]:
    nodes = [node for unit in trace_model(model).units for node in unit.graph.nodes]
    return [str(node.args[0]) for node in nodes if node.target is assume]


@pytest.mark.parametrize("block", [Shifted, Asked])
def test_what_every_call_gives_is_checked_where_the_forward_does_without_it(block: type[Block]) -> None:
    torch.manual_seed(0)
    model: Any = Shifting([block(), block()]).eval()
    changed: Any = attached(model)
    torch.testing.assert_close(changed(IDS), model(IDS))
    assert checks(model) == ["shift is None"]
    with pytest.raises(ValueError, match=f"{block.__name__} was compiled for calls with shift"):
        changed.blocks[0](torch.ones(1, 3, 8), None)


def test_what_is_left_out_is_as_none() -> None:
    model: Any = Shifting([Shifted(), Shifted()]).eval()
    changed: Any = attached(model)
    assert torch.equal(model.blocks[0](torch.ones(1, 3, 8)), model.blocks[0](torch.ones(1, 3, 8), None))
    with pytest.raises(ValueError, match="Shifted was compiled for calls with shift"):
        changed.blocks[0](torch.ones(1, 3, 8))


@pytest.mark.parametrize("block", [Handing, Bound])
def test_what_is_handed_on_or_cannot_be_left_out_needs_no_check(block: type[Block]) -> None:
    assert checks(Shifting([block(), block()]).eval()) == []


class Placing(Block):
    """Hands on what no call of its model gives, by its name; what it is handed to does not read it."""

    def forward(self, x: Tensor, place: Any = None, **kwargs: Any) -> Any:
        x = x + self.attention(x, place=place)
        return x + self.down(torch.relu(self.up(x)))


class PlacedBefore(Placing):
    """Reads it too, where it is given."""

    def forward(self, x: Tensor, place: Any = None, **kwargs: Any) -> Any:
        return super().forward(x if place is None else x + place, place=place)


def test_what_no_call_gives_is_handed_on_all_the_same() -> None:
    changed: Any = attached(made(Placing))
    seen: list[Any] = []
    changed.blocks[0].attention.register_forward_pre_hook(
        lambda m, args, kw: seen.append(kw["place"]), with_kwargs=True
    )
    changed.blocks[0](torch.ones(1, 3, WIDTH), place=7)
    assert seen == [7] and checks(made(Placing)) == []
    assert checks(made(PlacedBefore)) == ["place is not None"]


SIZES = {"hidden_size": 32, "intermediate_size": 48, "vocab_size": 128}
TEXT = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2, "max_position_embeddings": 64}
SEEN = {"depth": 1, "num_heads": 4, "out_hidden_size": 32, "image_size": 32, "patch_size": 8}


def test_a_model_that_hands_use_cache_on_runs_without_a_cache_too() -> None:
    """Its own config does not say whether it keeps one: that of its text does."""
    mrope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
    text = {**SIZES, **TEXT, "rope_parameters": mrope, "pad_token_id": 0}
    seen = {**SIZES, **SEEN}
    config = AutoConfig.for_model("glm4v", text_config=text, vision_config=seen)
    base = AutoModelForImageTextToText.from_config(config).eval()
    model = peftc.attach(copy.deepcopy(base), spec([{"method": "lora", "at": ["q", "v"], "rank": 2}]))
    for keeps in (True, False):
        own, same = (m(input_ids=IDS, use_cache=keeps) for m in (base, model))
        torch.testing.assert_close(same.logits, own.logits)
        assert (same.past_key_values is None) is not keeps


class Starred(Block):
    """A block that would take arguments without names, which no call gives it."""

    def forward(self, x: Tensor, *others: Tensor, **kwargs: Any) -> Tensor:
        return super().forward(x) if not others else x


def test_arguments_without_names_that_no_call_gives_are_none() -> None:
    torch.manual_seed(0)
    model: Any = attached(Net([Starred(), Starred()]).eval())
    with pytest.raises(ValueError, match=r"compiled for others=\(\)"):
        model.blocks[0](torch.zeros(1, 3, WIDTH), torch.zeros(1))
