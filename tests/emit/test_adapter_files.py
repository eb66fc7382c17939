"""Adapter files: bit for bit, and refused where anything does not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.emit.bases import bert
from tests.emit.compiled import ALL, answer, compiled, perturb, same, state, trains
from tests.emit.programs import Written


@ALL
def test_adapter_round_trip(program: Callable[[], Written], bases: dict[str, Path], tmp_path: Path) -> None:
    model, other = (compiled(program()).from_base(bases[program.__name__]) for _ in range(2))
    perturb(model)
    model.save_adapter(tmp_path / "a")
    assert set(load_file(tmp_path / "a" / "adapter.safetensors")) == trains(model)
    assert not torch.equal(answer(model), answer(other))
    other.load_adapter(tmp_path / "a")
    assert same(state(model), state(other))
    first = {f.name: f.read_bytes() for f in (tmp_path / "a").iterdir()}
    other.save_adapter(tmp_path / "b")
    assert first == {f.name: f.read_bytes() for f in (tmp_path / "b").iterdir()}


def test_adapter_refusals(bases: dict[str, Path], tmp_path: Path) -> None:
    model = compiled(bert()).from_base(bases["bert"])
    model.save_adapter(tmp_path)
    weights, facts = load_file(tmp_path / "adapter.safetensors"), json.loads((tmp_path / "adapter.json").read_text())
    perturb(model)
    before = state(model)
    missing, name = sorted(weights)[:2]
    changed = {**weights, name: weights[name].half(), "extra": torch.zeros(1), "prefix_trunk.E": torch.zeros(9, 16)}
    del changed[missing]
    save_file(changed, tmp_path / "adapter.safetensors")
    (tmp_path / "adapter.json").write_text(json.dumps({**facts, "plan": "another"}))
    with pytest.raises(ValueError, match="does not fit") as caught:
        model.load_adapter(tmp_path)
    text = str(caught.value)
    assert "plan" in text and "sha256" in text
    for line in (
        f"missing: {missing}",
        "not of this model: extra",
        "another shape: prefix_trunk.E",
        f"another dtype: {name}",
    ):
        assert line in text
    assert same(before, state(model))


def test_adapter_of_another_base(bases: dict[str, Path], tmp_path: Path) -> None:
    model = compiled(bert()).from_base(bases["bert"])
    model.save_adapter(tmp_path)
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight[0, 0] += 1
    with pytest.raises(ValueError, match="another: base"):
        model.load_adapter(tmp_path)
