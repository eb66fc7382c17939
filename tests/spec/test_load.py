"""YAML as a spec reads it: its numbers, its limits, its places."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from peftc.errors import PeftcError
from peftc.spec import load as loading
from peftc.spec.load import load, loads, written

GOOD = """\
name: bert-unipelt
base: {model: google-bert/bert-base-uncased, task: sequence-classification}
seed: 42
methods:
  - &prefix {method: prefix, length: 10, reparametrize: {hidden: 512}, gate: sequence}
  - method: lora
    at: q
    dropout: 1e-3
    layers: 0, 3, 7-
  - preset: unipelt-apl
    layers: 0-3
    lora: {rank: 4, gate: {scope: site}}
    adapter: {bottleneck: 8}
  - <<: *prefix
    length: 4
train: classifier
budget: {trained: "<= 12%", stored: 1_000_000}
"""

BROKEN = {
    "empty": "",
    "comment": "# nothing",
    "a word": "hello",
    "a list": "- name: x",
    "open quote": 'name: "abc',
    "tab": "name:\n\t- x",
    "nul": "name: a\0b",
    "two documents": "name: x\n---\nname: y\n",
    "python tag": 'name: !!python/object/apply:os.system ["id"]',
    "binary": "name: !!binary aGk=",
    "set": "!!set {a, b}",
    "timestamp": "name: 2024-01-01",
    "wrong tag": "seed: !!int abc",
    "cycle": "&a {x: *a}",
    "undefined alias": "a: *x",
    "bad merge": "<<: [1]",
    "deep": "[" * 50_000,
    "deep blocks": "- " * 50_000,
    "huge integer": "seed: " + "9" * 5000,
    "overflow": "seed: 1e999",
    "surrogate": 'name: "\\ud800"',
    "list as key": "? [a]\n: b\n",
    "boolean as key": "true: 3",
    "bomb": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)),
    "large": "#" * (loading.FILE_BYTES + 1),
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_broken_yaml_is_a_complaint(text: str) -> None:
    with pytest.raises(PeftcError):
        loads(text, "broken.yaml")


def test_good() -> None:
    spec = loads(GOOD)
    assert [method.method for method in spec.methods] == ["prefix", "lora", "prefix", "lora", "adapter", "prefix"]
    assert spec.methods[1].at == ("q",)
    assert spec.methods[1].model_dump()["dropout"] == 0.001
    assert spec.methods[5].model_dump()["length"] == 4
    assert spec.train == ("classifier",)
    assert spec.base.task == "sequence-classification"


def test_places() -> None:
    origin = loads(GOOD, "good.yaml").origin
    wanted = {
        ("methods", 1, "at", 0): (7, 9),
        ("methods", 3, "rank"): (12, 18),
        ("methods", 3, "at", 1): (10, 13),
        ("methods", 4, "layers"): (11, 13),
        ("methods", 5, "length"): (15, 13),
        ("budget", "trained"): (17, 19),
    }
    for path, position in wanted.items():
        place = origin.place(*path)
        assert place and (place.line, place.column) == position


def test_files(tmp_path: Path) -> None:
    for name, data in {"latin": b"name: caf\xe9", "binary": bytes(range(256))}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(PeftcError, match="UTF-8"):
            load(tmp_path / name)
    for missing in (tmp_path, tmp_path / "nowhere.yaml", "a\0b"):
        with pytest.raises(PeftcError, match="cannot read"):
            load(missing)
    (tmp_path / "good.yaml").write_text("\ufeff" + GOOD, encoding="utf-8")
    assert load(tmp_path / "good.yaml").name == "bert-unipelt"


@settings(max_examples=150, deadline=None)
@given(st.integers(0, len(GOOD)), st.integers(0, 12), st.text("{}[]:-&*!|>'\"%@`,#? \n\tq0.<=é\x00", max_size=4))
def test_a_mutated_spec_loads_or_is_refused(start: int, cut: int, put: str) -> None:
    try:
        loads(GOOD[:start] + put + GOOD[start + cut :])
    except PeftcError as error:
        assert str(error)


def test_validating_needs_no_torch() -> None:
    code = "import sys; from peftc.spec.load import loads; loads(sys.argv[1]); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code, GOOD], check=False).returncode == 0


def test_a_name_that_leads_nowhere_is_not_what_was_meant(tmp_path: Path) -> None:
    (tmp_path / "gone.yaml").symlink_to("nowhere")
    with pytest.raises(PeftcError, match="cannot read") as caught:
        load(tmp_path / "gone.yaml")
    assert caught.value.problems[0].hint is None


def test_a_spec_as_a_dict_is_what_its_yaml_would_be() -> None:
    methods = [{"method": "lora", "at": ["q"], "dropout": 1e-3}]
    given = {"name": "small", "base": {"model": "owner/name"}, "methods": methods}
    one, other = written(given), loads(yaml.safe_dump(given, sort_keys=False))
    assert (one.name, one.base, one.methods) == (other.name, other.base, other.methods)
    with pytest.raises(PeftcError, match="unknown key 'ranks'"):
        written({**given, "methods": [{**methods[0], "ranks": 2}]})


@pytest.mark.parametrize(
    "given", [None, 3, [1], {"name": object()}], ids=["nothing", "a number", "a list", "an object"]
)
def test_what_is_no_spec(given: Any) -> None:
    with pytest.raises(PeftcError, match="no spec, nor the path of one"):
        written(given)
