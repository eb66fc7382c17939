"""Gradient checkpointing, of both kinds and switched on before or after attaching, changes no gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from peftc.runtime import attach
from tests.around.subjects import Subject, alike, gradients, subjects
from tests.laws import additions, move


@subjects()
@pytest.mark.parametrize("reentrant", [False, True], ids=["", "reentrant"])
@pytest.mark.parametrize("first", ["checkpointed", "attached"])
def test_gradients_are_those_without(subject: Subject, first: str, reentrant: bool) -> None:
    expected = gradients(subject.moved(), subject.given(padded=True))
    model = subject.base()
    if first == "checkpointed":
        checkpoint(model, reentrant)
    attach(model, subject.artifact())
    if first == "attached":
        checkpoint(model, reentrant)
    move(additions(model))
    runs = count_runs(model)
    found = gradients(model, subject.given(padded=True))
    assert set(runs.values()) == {2}  # forward, and again in backward
    assert found.keys() == expected.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    alike(found, expected, 1e-4)


def checkpoint(model: Any, reentrant: bool) -> None:
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()  # or a first layer whose input needs no gradient has none


def count_runs(model: Any) -> dict[str, int]:
    """How often each LoRA runs."""
    runs: dict[str, int] = {}

    def count(path: str) -> Any:
        def add(*_: torch.Tensor) -> None:
            runs[path] = runs.get(path, 0) + 1

        return add

    for path in model.added:
        if path.endswith("_lora"):
            model.get_submodule(path).register_forward_pre_hook(count(path))
    return runs
