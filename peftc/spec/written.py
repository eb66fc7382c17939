"""A spec as plain values, and as YAML text again: presets expanded."""

from __future__ import annotations

import json
import re
from typing import Any

from peftc.spec.document import Plain
from peftc.spec.schema import Spec

WIDTH = 100

_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*")
_TAKEN = {"true", "false", "null"}


def recorded(spec: Spec) -> dict[str, Plain]:
    """Values that load as the same spec, every entry a method: of its settings only what was said."""
    limits = {"trained": spec.budget.trained, "stored": spec.budget.stored}
    return {
        "name": spec.name,
        "base": spec.base.model_dump(mode="json", exclude_none=True),
        "seed": spec.seed,
        "dtype": spec.dtype,
        "methods": [{"method": m.method, **m.model_dump(mode="json", exclude_unset=True)} for m in spec.methods],
        "train": list(spec.train),
        "budget": {key: str(limit).replace(",", "") for key, limit in limits.items() if limit},
    }


def expanded(spec: Spec) -> str:
    """The same as YAML, for readers."""
    said: dict[str, Any] = recorded(spec)
    lines = [f"name: {spec.name}", *_lines("base", said["base"])]
    lines += [f"seed: {spec.seed}", f"dtype: {spec.dtype}", "methods:" if spec.methods else "methods: []"]
    for settings in said["methods"]:
        lines += [f"{'  - ' if key == 'method' else '    '}{key}: {_value(value)}" for key, value in settings.items()]
    lines += [f"{key}: {_value(said[key])}" for key in ("train", "budget") if said[key]]
    return "\n".join(lines) + "\n"


def _lines(key: str, value: Plain) -> list[str]:
    """A setting on one line where it fits, else what it holds on lines of their own."""
    line = f"{_value(key)}: {_value(value)}"
    if len(line) <= WIDTH or not isinstance(value, dict | list):
        return [line]
    if isinstance(value, list):
        return [f"{_value(key)}:", *(f"  - {_value(item)}" for item in value)]
    return [f"{_value(key)}:", *(f"  {below}" for name, item in value.items() for below in _lines(name, item))]


def _value(value: Plain) -> str:
    """A value on one line: words as they are, other text in JSON's quotes, which YAML reads alike."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_value(key)}: {_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    if isinstance(value, str) and _WORD.fullmatch(value) and value.lower() not in _TAKEN:
        return value
    return json.dumps(value)
