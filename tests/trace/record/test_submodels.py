"""A model inside a model, which the outer one's example inputs do not reach, is run by itself."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from peftc.graph.sites import Trace
from peftc.plan import resolve
from peftc.trace import trace_model
from peftc.trace.record.submodels import inner_runs
from peftc.trace.roles.layers import tower_names
from tests.laws import spec
from tests.trace.nets import WIDTH, Block, Net, attached

SIDE = 4


def picturing() -> PreTrainedConfig:
    config: PreTrainedConfig = PreTrainedConfig.from_dict({"image_size": SIDE})
    return config


class Seeing(PreTrainedModel):
    """Blocks over the rows of a picture."""

    def __init__(self) -> None:
        super().__init__(picturing())
        self.rows, self.blocks = nn.Linear(SIDE, WIDTH), nn.ModuleList([Block(), Block()])

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        x: torch.Tensor = self.rows(pixel_values.flatten(1, 2))
        for block in self.blocks:
            x = block(x)
        return x


class Ready(Seeing):
    """The same over rows that another has made of a picture."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden_states)


class Early(Seeing):
    """The same, but for what it sees before its last block."""

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        x: torch.Tensor = self.blocks[0](self.rows(pixel_values.flatten(1, 2)))
        self.blocks[1](x)
        return x


class Composed(Net):
    """Text, and one row of a picture at each place that its ids say."""

    def __init__(self, seeing: Seeing) -> None:
        super().__init__([Block(), Block()])
        self.seeing_tower, self.config = seeing, picturing()

    def forward(self, input_ids: torch.Tensor, pixel_values: torch.Tensor | None = None) -> torch.Tensor:
        x, places = self.embedding(input_ids), input_ids == 9
        if pixel_values is not None:
            rows = self.get_image_features(pixel_values)
            if x[places].numel() != rows.numel():
                raise ValueError("as many places as rows are needed")
            x = x.masked_scatter(places[..., None], rows)
        for block in self.blocks:
            x = block(x)
        result: torch.Tensor = x
        return result

    def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        rows: torch.Tensor = self.seeing_tower(pixel_values)
        return rows


class Counting(Composed):
    """Sees in whole numbers only, through which no gradient goes."""

    def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return super().get_image_features(pixel_values).round().long().float()


def composed(kind: type[Composed] = Composed, seeing: type[Seeing] = Seeing) -> Composed:
    torch.manual_seed(0)
    return kind(seeing()).eval()


def notes(trace: Trace) -> tuple[str, ...]:
    return resolve(spec([{"method": "adapter", "bottleneck": 2}]), trace).notes


def test_its_layers_are_a_tower() -> None:
    trace = trace_model(composed())
    assert (trace.towers(), trace.submodels, dict(trace.unfed)) == (("blocks", "seeing"), ("seeing_tower",), {})
    assert [layer.index for layer in trace.layers] == [0, 1, 0, 1]
    assert {layer.site_names() for layer in trace.layers} == {trace.layers[0].site_names()}
    assert not notes(trace)


def test_what_is_added_there_changes_what_the_outer_model_makes_of_a_picture() -> None:
    model, ids = composed(), torch.tensor([[1] + [9] * 3 * SIDE + [2]])
    changed = attached(model, {"method": "lora", "at": ["q", "v"], "rank": 2, "towers": ["seeing"]})
    pixels = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    trained = {name: p for name, p in changed.named_parameters() if p.requires_grad}
    for p in trained.values():
        p.data += 0.3
    answer = changed(ids, pixels)
    assert not torch.allclose(answer, model(ids, pixels))
    assert torch.equal(changed(ids), model(ids))
    answer.square().sum().backward()
    assert len(trained) == 8
    for name, p in trained.items():
        assert name.startswith("seeing_tower.blocks.")
        assert p.grad is not None
        assert p.grad.abs().max() > 0


def test_what_no_gradient_comes_back_from_is_no_tower() -> None:
    trace = trace_model(composed(Counting))
    assert {layer.path for layer in trace.layers} == {"blocks.0", "blocks.1"}
    assert trace.untraced["seeing_tower.blocks.0"] == "no gradient reaches it"


def test_a_layer_that_nothing_reads_is_named() -> None:
    trace = trace_model(composed(seeing=Early))
    assert trace.unread == ("seeing_tower.blocks.1",)
    assert notes(trace) == ("no gradient reaches layer 1 of the seeing: what stands there never trains",)


def test_what_reads_something_else_is_named_with_the_reason() -> None:
    trace = trace_model(composed(seeing=Ready))
    why = "Ready reads hidden_states, which Composed does not take"
    assert (trace.towers(), dict(trace.unfed)) == (("encoder",), {"seeing_tower": why})
    assert notes(trace) == (
        "seeing_tower.blocks: no attention was found in 0, 1: no layers; modules: reaches them; seeing_tower was not "
        f"run: {why}",
    )


def test_what_ran_is_not_run_again() -> None:
    model = composed()

    def run(inner: nn.Module) -> nn.Module:
        return inner

    assert inner_runs(model, set(model.modules()), run) == ({}, {})
    assert inner_runs(model, {model.seeing_tower.blocks[1]}, run) == ({}, {})
    assert inner_runs(model, {model}, run) == ({"seeing_tower": model.seeing_tower}, {})


@pytest.mark.parametrize(
    ("owners", "names"),
    [
        (["a.text_model.layers", "a.vision_tower.layers"], ["text", "vision"]),
        (["text.layers", "see.near.layers", "see.far.blocks"], ["text", "see_near", "see_far"]),
        (["see.blocks", "see.far.blocks"], ["blocks", "far"]),
    ],
)
def test_no_two_towers_have_one_name(owners: list[str], names: list[str]) -> None:
    assert tower_names([[f"{owner}.0", f"{owner}.1"] for owner in owners], {}) == names
