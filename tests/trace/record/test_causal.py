"""What looks ahead, where no code says so: seen in what a model makes of two sequences that differ at their end."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

import peftc
from peftc.spec.load import loads
from peftc.trace import trace_base, trace_model
from peftc.trace.record.causal import causal_paths
from peftc.trace.record.feeds import POINTS, feed
from tests.laws import spec, trace
from tests.trace import nets
from tests.zoo import named


class Sum(nn.Module):
    """Each position and all before it, or all of them."""

    def __init__(self, backwards: bool) -> None:
        super().__init__()
        self.backwards = backwards

    def forward(self, read: Tensor) -> Tensor:
        return read.flip(1).cumsum(1).flip(1) if self.backwards else read.cumsum(1)


class Pair(nn.Module):
    """An encoder, and a decoder that will not do without ids of its own; no config says so."""

    def __init__(self, ahead: bool, decodes_ahead: bool) -> None:
        super().__init__()
        self.table, self.encoder, self.decoder = nn.Embedding(61, 4), Sum(ahead), Sum(decodes_ahead)

    def forward(self, input_ids: Tensor, decoder_input_ids: Tensor) -> Tensor:
        read: Tensor = self.encoder(self.table(input_ids)).sum(1, keepdim=True)
        said: Tensor = self.decoder(self.table(decoder_input_ids) + read)
        return said


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("decodes_ahead", [False, True])
def test_an_encoder_and_a_decoder_are_each_asked_by_their_own_ids(ahead: bool, decodes_ahead: bool) -> None:
    found = causal_paths(Pair(ahead, decodes_ahead))
    assert (found["encoder"], found["decoder"]) == (not ahead, not decodes_ahead)


class Replacing(nn.Module):
    """It puts another module in the place of its last at its first call."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.first, self.last = nn.Embedding(61, 4), Sum(False), Sum(False)
        self.replaced = False

    def forward(self, input_ids: Tensor) -> Tensor:
        self.last, self.replaced = self.last if self.replaced else Sum(False), True
        read: Tensor = self.last(self.first(self.table(input_ids)))
        return read


def test_modules_that_a_forward_puts_in_place_are_not_asked() -> None:
    found = causal_paths(Replacing())
    assert found["first"]
    assert "last" not in found


class Choosing(nn.Module):
    """A score for each of several choices, which are read side by side; it takes nothing else."""

    def __init__(self, ahead: bool) -> None:
        super().__init__()
        self.table, self.reading, self.score = nn.Embedding(61, 4), Sum(ahead), nn.Linear(4, 1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        choices = input_ids.shape[1]
        seen = 1 if attention_mask is None else attention_mask.flatten(0, 1)[..., None]
        read = self.reading(self.table(input_ids.flatten(0, 1)) * seen)
        scores: Tensor = self.score(read[:, 0]).view(-1, choices)
        return scores


@pytest.mark.parametrize("ahead", [False, True])
def test_choices_are_read_where_nothing_else_is(ahead: bool) -> None:
    model = Choosing(ahead)
    assert causal_paths(model)["reading"] is not ahead
    given = feed(model).made(POINTS[1], torch.device("cpu"), mask=True)
    assert {name: tensor.shape for name, tensor in given.items()} == {
        "input_ids": (3, 3, 11),
        "attention_mask": (3, 3, 11),
    }


def test_the_mode_of_every_module_is_as_it_was() -> None:
    model = Pair(ahead=True, decodes_ahead=False)
    model.encoder.eval()
    causal_paths(model)
    assert (model.training, model.encoder.training, model.decoder.training) == (True, False, True)


class Unseen(nn.Module):
    """An attention that no trace can follow: it asks how large a number is."""

    def __init__(self, back: bool) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))
        self.back = back

    def forward(self, x: Tensor) -> Tensor:
        scores = self.q(x) @ self.k(x).mT
        banned = torch.ones_like(scores, dtype=torch.bool).triu(1) & self.back
        mixed: Tensor = scores.masked_fill(banned, float("-inf")).softmax(-1) @ self.v(x)
        return mixed if float(mixed.sum()) > 0 else mixed + 0


class Block(nn.Module):
    def __init__(self, back: bool) -> None:
        super().__init__()
        self.attention, self.up, self.down = Unseen(back), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        grown: Tensor = x + self.down(torch.relu(self.up(x)))
        return grown


class Stack(nn.Module):
    def __init__(self, back: bool) -> None:
        super().__init__()
        self.config = SimpleNamespace()
        self.table, self.blocks = nn.Embedding(61, 8), nn.ModuleList(Block(back) for _ in range(2))

    def forward(self, input_ids: Tensor) -> Tensor:
        x: Tensor = self.table(input_ids)
        for block in self.blocks:
            x = block(x)
        return x


@pytest.mark.parametrize("back", [False, True])
def test_a_block_whose_attention_is_not_traced(back: bool) -> None:
    trace = trace_model(Stack(back))
    sites = [site for layer in trace.layers for _, unit in layer.units for site in unit.sites]
    assert sites
    assert {site.causal for site in sites} == {back}


def test_pictures_are_seen_whole_beside_a_causal_text() -> None:
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    text = {**size, "vocab_size": 61, "max_position_embeddings": 32, "bos_token_id": 1, "eos_token_id": 2}
    written = {"text_config": text, "vision_config": {**size, "image_size": 16, "patch_size": 8}}
    model = AutoModel.from_config(AutoConfig.for_model("clip", **written))
    causal = {
        layer.tower: {s.causal for _, unit in layer.units for s in unit.sites} for layer in trace_model(model).layers
    }
    assert causal == {"text": {True}, "vision": {False}}


@pytest.mark.parametrize(
    ("kind", "task", "tower"), [("openai-gpt", "causal-lm", "decoder"), ("roformer", "masked-lm", "encoder")]
)
def test_a_base_without_weights_is_asked_as_one_of_its_kind(kind: str, task: str, tower: str) -> None:
    """Their softmax is written out, and no cache shows how they go on."""
    sizes = "vocab_size: 61, hidden_size: 16, num_hidden_layers: 3, num_attention_heads: 2"
    spec = loads(
        f"name: x\nbase: {{config: {{model_type: {kind}, {sizes}}}, task: {task}}}\nmethods: [{{method: lora}}]\n"
    )
    assert {layer.tower for layer in trace_base(spec.base).layers} == {tower}


def test_a_base_that_reads_no_ids_is_not_asked() -> None:
    """With one layer, which is one stage, its head would not fit."""
    config = "model_type: convnextv2, hidden_sizes: [4, 8, 8, 16], depths: [1, 1, 1, 1], image_size: 32"
    base = f"{{config: {{{config}}}, task: image-classification}}"
    spec = loads(f"name: x\nbase: {base}\nmethods: [{{method: bitfit}}]\n")
    sites = [site for unit in trace_base(spec.base).units for site in unit.sites]
    assert sites
    assert not any(site.causal for site in sites)


def test_a_cross_attention_looks_back_but_for_what_it_reads_whole() -> None:
    """Its queries are the decoder's, one after the other; its keys and values are the encoder's, all of them there."""
    layers = trace(named("bart")).layers
    said = {s.name: s.causal for layer in layers if layer.tower == "decoder" for _, u in layer.units for s in u.sites}
    crossing = {name.removeprefix("cross."): causal for name, causal in said.items() if name.startswith("cross.")}
    assert crossing.pop("k") is crossing.pop("v") is False
    assert crossing.keys() == {"q", "o", "attention", "attention_output"} and all(crossing.values())


class Latents(nets.Block):
    """Learnt states that attend to each other after they read the ids."""

    def __init__(self) -> None:
        super().__init__()
        self.states, self.norm = nn.Parameter(torch.randn(3, nets.WIDTH)), nn.LayerNorm(nets.WIDTH)

    def prepared(self, x: Tensor, **kwargs: object) -> Tensor:
        normed: Tensor = self.norm(x)
        return normed

    def forward(self, x: Tensor, **kwargs: object) -> Tensor:
        latents = x if x.shape[1] == 3 else self.states.expand(len(x), -1, -1) + x.sum(1, keepdim=True)
        read: Tensor = super().forward(latents)
        return read


def test_states_that_read_every_id_look_ahead() -> None:
    """So each sees all others: a prefix beside them hides none."""
    model = nets.made(Latents)
    assert not any(site.causal for layer in trace_model(model).layers for _, unit in layer.units for site in unit.sites)
    with_prefix = peftc.attach(model, spec([{"method": "prefix", "length": 2, "gate": "sequence"}]))
    assert with_prefix(nets.IDS).isfinite().all()
