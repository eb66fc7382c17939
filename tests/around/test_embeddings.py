"""Tied and resized embeddings, before and after attaching, with adapter files afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import peftc
from peftc.runtime import attach
from tests.around.subjects import GENERATING, Subject, alike, gradients, output, subjects, without_effect
from tests.laws import additions, move, same, spec, trains
from tests.zoo import VOCABULARY, named

MORE = VOCABULARY + 7


def tied(subject: Subject) -> Any:
    """A base whose output layer is its embedding."""
    model = subject.base()
    model.config.tie_word_embeddings = True
    model.tie_weights()
    return model


@subjects(*GENERATING)
def test_tied_embeddings_stay_tied(subject: Subject, tmp_path: Path) -> None:
    base, given = tied(subject), subject.given(padded=True)
    assert base.lm_head.weight is base.get_input_embeddings().weight
    expected = output(base, given)
    model = attach(base, subject.artifact())
    assert model.lm_head.weight is model.get_input_embeddings().weight
    alike(output(without_effect(attach(tied(subject), subject.artifact())), given), expected)
    move(additions(model))
    assert gradients(model, given).keys() == trains(model)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert again.lm_head.weight is again.get_input_embeddings().weight
    came_back(again, model, given)


@subjects()
@pytest.mark.parametrize("tie", [False, True], ids=["", "tied"])
@pytest.mark.parametrize("first", ["resized", "attached"])
def test_resized_embeddings(subject: Subject, first: str, tie: bool, tmp_path: Path) -> None:
    model = resized(subject, first, tie)
    move(additions(model))
    more = MORE if subject.generates else model.config.num_labels
    given = {**subject.given(), "input_ids": subject.given()["input_ids"] + 7}
    assert trains(model) == model.added_names() and output(model, given).shape[-1] == more
    model.save_adapter(tmp_path)
    other = resized(subject, first, tie)
    assert not same(output(other, given), output(model, given))
    other.load_adapter(tmp_path)
    assert same(output(other, given), output(model, given))
    with pytest.raises(ValueError, match="another: base"):
        attach(subject.base(), subject.artifact()).load_adapter(tmp_path)


def resized(subject: Subject, first: str, tie: bool) -> Any:
    base = tied(subject) if tie and subject.generates else subject.base()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if first == "resized":
            base.resize_token_embeddings(MORE, mean_resizing=False)
        model = attach(base, subject.artifact())
        if first == "attached":
            model.resize_token_embeddings(MORE, mean_resizing=False)
    return model


def came_back(again: Any, model: Any, given: dict[str, Any]) -> None:
    """Every value bit for bit; a kernel may round otherwise what a file's loader has put elsewhere in memory."""
    values = model.state_dict()
    assert again.state_dict().keys() == values.keys()
    assert all(same(tensor, values[name]) for name, tensor in again.state_dict().items())
    alike(output(again, given), output(model, given))


@subjects()
def test_a_resized_model_is_saved_whole(subject: Subject, tmp_path: Path) -> None:
    model, given = resized(subject, "attached", False), subject.given()
    move(additions(model))
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert again.get_input_embeddings().weight.shape[0] == MORE
    assert trains(again) == trains(model)
    came_back(again, model, given)


def test_lora_on_an_embedding_trains_on_when_that_is_resized() -> None:
    tiny = named("bert")
    model = peftc.attach(tiny.model(), spec([{"method": "lora", "at": "embedding", "rank": 2}], tiny))
    model.resize_token_embeddings(MORE, mean_resizing=False)
    assert trains(model) == model.added_names()
    move(additions(model))
    found = gradients(model, {"input_ids": torch.tensor([[3, MORE - 1]])})
    assert found.keys() == trains(model) and all(g.abs().max() > 0 for g in found.values())
