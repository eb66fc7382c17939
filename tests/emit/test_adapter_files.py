"""Adapter files: bit for bit, and refused where anything does not fit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.emit.bases import bert, gpt2, llama
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
    digest = hashlib.sha256((tmp_path / "adapter.safetensors").read_bytes()).hexdigest()
    (tmp_path / "adapter.json").write_text(json.dumps({**facts, "plan": "another", "sha256": digest}))
    with pytest.raises(ValueError, match="does not fit") as caught:
        model.load_adapter(tmp_path)
    text = str(caught.value)
    for line in (
        "adapter.json has another: plan",
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


def test_adapter_files_that_cannot_be_read(bases: dict[str, Path], tmp_path: Path) -> None:
    model = compiled(bert()).from_base(bases["bert"])
    before = state(model)
    with pytest.raises(ValueError, match="nothere holds no adapter that can be read"):
        model.load_adapter(tmp_path / "nothere")
    model.save_adapter(tmp_path)
    weights, facts = tmp_path / "adapter.safetensors", tmp_path / "adapter.json"
    content, text = weights.read_bytes(), facts.read_text()
    for other in (content[:-1], content + b"0", b""):
        weights.write_bytes(other)
        with pytest.raises(ValueError, match="is not the file whose sha256"):
            model.load_adapter(tmp_path)
    facts.write_text("[" * 100_000)
    with pytest.raises(ValueError, match="holds no adapter that can be read"):
        model.load_adapter(tmp_path)
    facts.write_text(text)
    weights.write_bytes(b"no tensors")
    facts.write_text(json.dumps({"sha256": hashlib.sha256(b"no tensors").hexdigest()}))
    with pytest.raises(ValueError, match="holds no tensors"):
        model.load_adapter(tmp_path)
    for broken, complaint in (("[]", "is not a JSON object"), ("{", "no adapter that can be read")):
        facts.write_text(broken)
        with pytest.raises(ValueError, match=complaint):
            model.load_adapter(tmp_path)
    facts.write_text(text)
    weights.unlink()
    with pytest.raises(ValueError, match="no adapter that can be read"):
        model.load_adapter(tmp_path)
    assert same(before, state(model))


def test_the_base_is_hashed_anew_each_time(bases: dict[str, Path]) -> None:
    model = compiled(bert()).from_base(bases["bert"])
    first = model.base_hash()
    model.bert.embeddings.word_embeddings.weight.data[0, 0] += 1  # unseen by the tensor's version counter
    assert model.base_hash() != first


def test_nothing_is_saved_or_loaded_while_the_base_stands_in_for_what_trains(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    """A norm that trains has the base's values inside `disable_adapter`: they are no adapter's."""
    model = compiled(gpt2()).from_base(bases["gpt2"])
    perturb(model)
    model.save_adapter(tmp_path)
    before = state(model)
    with model.disable_adapter():
        for change in (model.save_adapter, model.load_adapter, model.save_pretrained):
            with pytest.raises(ValueError, match="save and load outside"), model.disable_adapter():
                change(tmp_path)
    model.load_adapter(tmp_path)
    assert same(before, state(model))
    added = compiled(llama()).from_base(bases["llama"])
    with added.disable_adapter():
        added.save_adapter(tmp_path)
