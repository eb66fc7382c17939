"""Models that read numbers out of tensors before their blocks: what they do is recorded on the CPU, on zeros."""

from __future__ import annotations

from itertools import chain
from typing import Any

import pytest
import torch
from torch import nn

import peftc
from peftc.runtime.proof import prove
from peftc.spec.schema import Base
from peftc.trace import trace_base, trace_model
from peftc.trace.record.inputs import SCENARIOS
from peftc.trace.record.model import skeleton
from peftc.trace.record.observed import observe
from tests.laws import emitted, perturbed, spec
from tests.trace.nets import Attending, Block, Net, attached, made

FULL = {"q", "k", "v", "o", "attention", "attention_output", "ffn_up", "ffn_down", "ffn"}


class Cut(Net):
    """Gives its blocks as many positions as the longest example has."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.cut(self.embedding(ids), (ids >= 0).sum(1))
        for block in self.blocks:
            x = block(x)
        return x

    def cut(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return x[:, : int(lengths.max())]


class Listed(Cut):
    def cut(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return x[:, : max(lengths.tolist())]


class Counted(Cut):
    def cut(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return x + torch.arange(lengths.max(), device=x.device)[None, :, None]  # type: ignore[call-overload, no-any-return]


class Repeated(Cut):
    """Counts in a buffer that its forward registers."""

    def cut(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        self.register_buffer("times", torch.ones_like(lengths))
        times = self.get_buffer("times")
        return torch.stack([row.repeat_interleave(n, 0) for row, n in zip(x, times, strict=True)])


class Kept(Cut):
    """Takes the rows that are not hidden."""

    def cut(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        seen = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
        return x[seen].view(len(x), max(lengths.tolist()), -1)


def cutting(kind: type[Cut], seed: int = 0) -> Cut:
    torch.manual_seed(seed)
    return kind([Block(), Block()]).eval()


@pytest.mark.parametrize("kind", [Cut, Listed, Counted, Repeated, Kept])
def test_a_model_that_reads_a_number_has_sites(kind: type[Cut]) -> None:
    model = cutting(kind)
    changed: Any = attached(model)
    for length in (1, 3, 12):
        ids = torch.arange(2 * length).reshape(2, length) % 11
        torch.testing.assert_close(changed(ids), model(ids))
    perturbed(changed)
    assert not torch.allclose(changed(ids), model(ids))


def test_what_is_recorded_depends_on_no_weights() -> None:
    written = spec([{"method": "adapter", "bottleneck": 2}])
    one, other = (emitted(written, trace_model(cutting(Listed, seed)))[1].files for seed in (0, 1))
    assert one == other


@pytest.mark.parametrize("kind", [Listed, Repeated])
def test_a_model_is_as_it_was_and_what_is_recorded_has_no_numbers(kind: type[Cut]) -> None:
    model = skeleton(cutting(kind))
    before = dict(model.named_parameters())
    recorded = observe(model).recordings[SCENARIOS[0]]
    assert all(tensor.is_meta for tensor in chain(model.parameters(), model.buffers()))
    assert dict(model.named_parameters()).keys() == before.keys()
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    for recording, length in zip(recorded, (7, 11), strict=True):
        states = recording.calls[model.get_submodule("blocks.0")].named["x"]
        assert states.is_meta and states.shape[1] == length


class Reading(Block):
    """Reads a number itself."""

    def prepared(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return torch.div(x, max(x[0, 0].tolist()))


def test_a_unit_that_reads_a_number_is_still_not_traced() -> None:
    trace = trace_model(made(Reading))
    assert not any("ffn" in layer.site_names() for layer in trace.layers)
    assert any("it reads numbers out of a tensor (line" in why for why in trace.untraced.values())


class Refusing(Cut):
    """Fails on numbers too, in other words."""

    def cut(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        raise RuntimeError(f"{max(lengths.tolist())} are too many")


class Mismatched(Attending):
    """Attends under a mask of other sizes, as torch's own function alone says."""

    def forward(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=x.new_zeros(3, 5))


def mismatched() -> Cut:
    model = cutting(Listed)
    for block in model.blocks:
        block.attention = Mismatched()
    return model


@pytest.mark.parametrize("model", [cutting(Refusing), mismatched()])
def test_what_a_model_says_without_numbers_comes_first(model: Cut) -> None:
    with pytest.raises(peftc.PeftcError, match=r"fails on example inputs: NotImplementedError: .*meta tensor"):
        trace_model(model)


def test_a_base_from_its_config() -> None:
    """Its embeddings resize what stands for positions to as many patches as a mask says that there are."""
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24, "num_hidden_layers": 2}
    config = {"model_type": "vilt", **sizes, "vocab_size": 50, "image_size": 32, "patch_size": 8}
    trace = trace_base(Base(config=config))
    assert [set(layer.site_names()) for layer in trace.layers] == [FULL, FULL]
    program, _ = emitted(spec([{"method": "lora", "at": ["q", "v"], "rank": 2}]), trace)
    assert "ViltSelfAttention: every parameter that trains has a gradient, no other has one" in prove(program).lines
