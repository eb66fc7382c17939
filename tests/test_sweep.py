"""A fixed sample of the registry keeps the laws; the list of types is whole; the page is what the results say."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.sweep import build, run, table
from tests.sweep.__main__ import FOUND
from tests.sweep.parts import parts
from tests.sweep.registry import listed, registered, variants

NO_BIAS = {"bitfit": "none"}
SAMPLE: dict[str, dict[str, str]] = {
    "albert": {},
    "apertus": NO_BIAS,
    "bart": {},
    "bert": {},
    "biogpt": {},
    "cohere": NO_BIAS,
    "deberta (released)": {},
    "electra": {},
    "falcon (alibi)": {},
    "gemma3_text": NO_BIAS,
    "gpt2": {},
    "gpt_neox": {},
    "llama": NO_BIAS,
    "llava": {},
    "opt": {},
    "qwen3": NO_BIAS,
    "vit": {},
    "wav2vec2": {},
    "whisper": {},
}


@pytest.mark.parametrize("name", SAMPLE)
def test_sample(name: str) -> None:
    row = run.row({**registered(), **variants()}[name])
    assert "peftc" in row, row
    found = {method: outcome for method, outcome in row["peftc"].items() if outcome["state"] != "ok"}
    assert {method: outcome["state"] for method, outcome in found.items()} == SAMPLE[name], found


@pytest.mark.parametrize(
    ("name", "has"),
    [("mt5", ["attention", "feed-forward"]), ("squeezebert", ["attention", "feed-forward"]),
     ("fnet", ["feed-forward"]), ("mamba", [])],
)  # fmt: skip
def test_what_a_model_has(name: str, has: list[str]) -> None:
    assert parts(build.tiny(registered()[name])) == has


def test_every_type_is_listed() -> None:
    names = [name for _, name in listed()]
    assert len(names) == len(set(names))
    assert set(registered()) <= set(names)


def test_every_variant_is_another_config() -> None:
    for kind in variants().values():
        assert build.config_of(kind.name, kind.settings).to_dict() != build.config_of(kind.name, {}).to_dict(), kind


def test_the_page_tells_variants_from_types() -> None:
    rows = [row for row in json.loads(FOUND.read_text("utf-8")) if row["type"] == "falcon"]
    page = table.page([*rows, {**rows[0], "type": "falcon (alibi)", "settings": {"alibi": True}}])
    types, varied = page.partition("## Types")[2].split("## Variants")
    assert "| falcon | decoder |" in types and "alibi" not in types
    assert "| falcon (alibi) | decoder |" in varied and '- falcon (alibi): `{"alibi": true}`' in varied


def test_every_type_and_variant_was_swept() -> None:
    assert {*registered(), *variants()} <= {row["type"] for row in json.loads(FOUND.read_text("utf-8"))}


def test_the_page_says_what_was_found() -> None:
    rows = json.loads(FOUND.read_text("utf-8"))
    assert FOUND.with_suffix(".md").read_text("utf-8") == table.page(rows)


def test_the_page_does_not_depend_on_the_order_of_keys() -> None:
    def backwards(value: Any) -> Any:
        return {key: backwards(value[key]) for key in reversed(value)} if isinstance(value, dict) else value

    rows = json.loads(FOUND.read_text("utf-8"))
    assert table.page([backwards(row) for row in rows]) == table.page(rows)
