"""The JSON Schema agrees with the loader; a printed expansion is the same spec; limits are exact."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from peftc.errors import PeftcError
from peftc.spec.limits import Limit, parse
from peftc.spec.load import loads
from peftc.spec.presets import PRESETS
from peftc.spec.schema import json_schema
from peftc.spec.written import expanded
from tests.spec.test_load import GOOD

SPECS = sorted((Path(__file__).parents[2] / "specs").glob("*.yaml"))
HEAD = "name: x\nbase: {config: {model_type: bert}}\nmethods:\n"
FINE = ["- {method: lora, at: q, gate: token}", "- {method: norm}", "- {preset: mam, adapter: {scale: 2}}"]
FINE += [f"- {{preset: {name}, layers: [0, 2]}}" for name in PRESETS]
WRONG = [
    "- {method: lorra}",
    "- {method: lora, rnk: 2}",
    "- {method: lora, gate: {kind: tokn}}",
    "- {preset: mam, lora: {}}",
]
WRONG += ["- {preset: no}", "- 5", "- {rank: 4}", "- {method: lora, rank: 0}", "- {method: lora, rank: '8'}"]
VALIDATOR = jsonschema.Draft202012Validator(json_schema())


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_specs(path: Path) -> None:
    text = path.read_text("utf-8")
    VALIDATOR.validate(yaml.safe_load(text))
    spec = loads(text)
    again = loads(expanded(spec))
    assert (again.name, again.base, again.methods, again.budget) == (spec.name, spec.base, spec.methods, spec.budget)


@pytest.mark.parametrize("entry", FINE)
def test_fine(entry: str) -> None:
    VALIDATOR.validate(yaml.safe_load(HEAD + entry))
    spec = loads(HEAD + entry)
    assert loads(expanded(spec)).methods == spec.methods


@pytest.mark.parametrize("entry", WRONG)
def test_wrong(entry: str) -> None:
    assert not VALIDATOR.is_valid(yaml.safe_load(HEAD + entry))
    with pytest.raises(PeftcError):
        loads(HEAD + entry)


def test_expansion_of_everything() -> None:
    spec = loads(GOOD)
    assert loads(expanded(spec)).methods == spec.methods
    assert expanded(loads(expanded(spec))) == expanded(spec)


def test_a_long_base_is_expanded_line_by_line() -> None:
    layers = ["sliding_attention", "full_attention"] * 8
    config = {"model_type": "x", "deep": {"id2label": {str(i): f"label {i}" for i in range(20)}}, "layer_types": layers}
    spec = loads(f"name: x\nbase: {json.dumps({'config': config})}\nmethods: []\n")
    text = expanded(spec)
    assert max(map(len, text.splitlines())) <= 100
    assert loads(text).base == spec.base


def test_every_setting_is_described() -> None:
    schema = json_schema()
    for name, definition in schema["$defs"].items():
        for key, setting in definition.get("properties", {}).items():
            assert key == "method" or "description" in setting, f"{name}.{key}"


def test_limits() -> None:
    percent, number = parse("<= 12%"), parse("< 1_000")
    assert isinstance(percent, Limit) and isinstance(number, Limit)
    assert percent.allows(12, 100) and not percent.allows(13, 100)
    assert number.allows(999, 1) and not number.allows(1000, 1)
    assert parse(7).allows(7, 1)
    assert (str(percent), str(number), str(parse("< 0.5 %"))) == ("<= 12%", "< 1,000", "< 0.5%")
