"""Copies: deep, pickled, on another device; each is the model, and apart from it."""

from __future__ import annotations

import copy
import io
from typing import Any

import torch

from peftc.runtime import attach
from tests.around.subjects import Subject, gradients, output, subjects
from tests.laws import additions, move, same, trains


def differs_alone(twin: Any, model: Any, given: dict[str, Any]) -> bool:
    """Whether moving the twin's additions leaves the model as it is."""
    before = output(model, given)
    move(additions(twin), seed=5)
    return torch.equal(output(model, given), before) and not torch.equal(output(twin, given), before)


@subjects()
def test_deep_copy(subject: Subject) -> None:
    model, given = subject.moved(), subject.given(padded=True)
    twin = copy.deepcopy(model)
    assert same(output(twin, given), output(model, given)) and trains(twin) == trains(model)
    assert gradients(twin, given).keys() == trains(model)
    assert not any(p.grad is not None for p in model.parameters())
    assert differs_alone(twin, model, given)


@subjects()
def test_the_state_is_pickled(subject: Subject) -> None:
    model, given = subject.moved(), subject.given(padded=True)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    twin = attach(subject.base(), subject.artifact())
    file.seek(0)
    twin.load_state_dict(torch.load(file, weights_only=True))  # house: ok, written above
    assert same(output(twin, given), output(model, given))


@subjects()
def test_to_a_device_and_back(subject: Subject) -> None:
    """Meta is the one other device that is always there: shapes pass, and every tensor has moved."""
    model, given = subject.moved(), subject.given(padded=True)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    far = copy.deepcopy(model).to("meta")
    assert all(tensor.is_meta for tensor in [*far.parameters(), *far.buffers()])
    near = far.to_empty(device="cpu")
    near.load_state_dict(state)
    for name, buffer in model.named_buffers():
        near.get_buffer(name).copy_(buffer)
    assert same(output(near, given), output(model, given)) and trains(near) == trains(model)
