"""What several layers share of a prefix is computed once in a forward, and never kept beyond it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

import peftc

SPEC = "name: trunk\nbase: {model: unused, task: sequence-classification}\nmethods:\n"
PREFIX = "  - method: prefix\n    length: 3\n    reparametrize: {hidden: 8}\n"
IDS = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])


@pytest.fixture
def model(tmp_path: Path) -> Any:
    config = BertConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, vocab_size=64,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    spec = tmp_path / "trunk.yaml"
    spec.write_text(SPEC + PREFIX)
    torch.manual_seed(0)
    found = peftc.attach(BertForSequenceClassification(config), spec)
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            if "prefix" in name:
                parameter.add_(0.3 * torch.randn(parameter.shape))
    return found


@contextmanager
def counted() -> Iterator[list[int]]:
    """How often the hidden state is computed: nothing else here calls tanh on three rows."""
    calls, tanh = [], torch.tanh

    def watched(x: torch.Tensor) -> torch.Tensor:
        if x.shape == (3, 8):
            calls.append(1)
        return tanh(x)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "tanh", watched)
        yield calls


def gradients(model: Any) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(input_ids=IDS).logits.square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("training", [False, True])
def test_once_per_forward(model: Any, training: bool) -> None:
    model.train(training)
    with counted() as calls:
        first = model(input_ids=IDS).logits
        assert len(calls) == 1
        second = model(input_ids=IDS).logits
    assert len(calls) == 2
    assert torch.equal(first, second)
    assert model.prefix_trunk.hidden is None


def test_the_same_numbers_without_it(model: Any) -> None:
    """A part of the model called by itself opens no forward of the whole: every layer then makes its own."""
    with counted() as calls:
        alone = model.bert(input_ids=IDS).last_hidden_state
    assert len(calls) == 3
    whole = model(input_ids=IDS, output_hidden_states=True).hidden_states[-1]
    assert torch.equal(alone, whole)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_makes_it_again(model: Any, reentrant: bool) -> None:
    model.train()
    wanted = gradients(model)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    found = gradients(model)
    assert wanted.keys() == found.keys() >= {f"prefix_trunk.{name}" for name in ("E", "W1", "b1", "W2", "b2")}
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, msg=name)


def test_a_step_is_seen_by_the_next_forward(model: Any) -> None:
    before = model(input_ids=IDS).logits
    with torch.no_grad():
        model.prefix_trunk.E.add_(1.0)
    assert not torch.allclose(before, model(input_ids=IDS).logits)


def test_a_forward_that_fails_leaves_nothing(model: Any) -> None:
    with pytest.raises(IndexError):
        model(input_ids=IDS + 100)
    assert model.prefix_trunk.hidden is None
    assert not model.prefix_trunk.open


def without_gradients(forward: Callable[..., Any]) -> Callable[..., Any]:
    def quiet(*args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            return forward(*args, **kwargs)

    return quiet


def test_a_frozen_start_does_not_cut_gradients(model: Any) -> None:
    """The first layer runs without gradients, as a base may do for layers that it keeps frozen."""
    layer = model.bert.encoder.layer[0]
    layer.forward = without_gradients(layer.forward)
    found = gradients(model)
    assert bool(found["prefix_trunk.E"].ne(0).any())


def test_a_copy_has_its_own(model: Any) -> None:
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.prefix_trunk.E.add_(1.0)
    with counted() as calls:
        theirs = twin(input_ids=IDS).logits
    assert len(calls) == 1
    assert not torch.allclose(theirs, model(input_ids=IDS).logits)


def test_one_graph(model: Any) -> None:
    compiled: Any = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(input_ids=IDS).logits, model(input_ids=IDS).logits)
