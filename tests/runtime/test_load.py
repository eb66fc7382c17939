"""Loading a folder: the artifact on a base, or a whole saved model; never the plain base, never edited files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from peftc.emit.provenance import config_text
from peftc.errors import PeftcError
from peftc.runtime import load
from tests.emit.bases import bert, ids


@pytest.fixture
def base(tmp_path: Path) -> Path:
    made: Any = bert().program.plan.trace.model
    made.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = bert()
    module = "modeling_by_hand"
    files = {f"{module}.py": made.text, "config.json": config_text(made.program.plan.trace.model, made.autos, module)}
    digests = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in files.items()}
    place = tmp_path / "artifact"
    place.mkdir()
    for name, text in {**files, "peftc.lock.json": json.dumps({"files": digests})}.items():
        (place / name).write_text(text)
    return place


def test_on_a_base_and_whole(folder: Path, base: Path, tmp_path: Path) -> None:
    model: Any = load(folder, base=base)
    assert model.added and type(model).__name__ == "BertForSequenceClassification"
    model.save_pretrained(tmp_path / "whole")
    again: Any = load(tmp_path / "whole")
    assert torch.equal(model(ids()).logits, again(ids()).logits)
    assert json.loads((tmp_path / "whole" / "config.json").read_text())["auto_map"] == {
        "AutoModelForSequenceClassification": "modeling_by_hand.BertForSequenceClassification"
    }


def test_an_edited_or_missing_file(folder: Path, base: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "modeling_by_hand.py").write_text("raise SystemExit")
    with pytest.raises(PeftcError) as caught:
        load(folder, base=base)
    text = str(caught.value)
    assert "config.json is missing" in text
    assert "modeling_by_hand.py is not the file that peftc.lock.json describes" in text


def test_the_plain_base_is_never_loaded(folder: Path, base: Path) -> None:
    with pytest.raises(PeftcError, match="no weights"):
        load(folder)
    with pytest.raises(PeftcError, match="would load the plain base"):
        load(base)
    with pytest.raises(PeftcError, match="is no artifact"):
        load(base, base=base)


def test_another_base(folder: Path, base: Path) -> None:
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 0.5}))
    with pytest.raises(PeftcError, match=r"layer_norm_eps is 0\.5"):
        load(folder, base=base)


def test_no_base(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(PeftcError, match="nothere"):
        load(folder, base=tmp_path / "nothere")
    with pytest.raises(PeftcError, match="nothere"):
        load(folder, base="nothere")
