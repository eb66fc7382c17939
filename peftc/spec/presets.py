"""Presets: names for entries that belong together.  They speak in reductions, so that they fit any base."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from peftc.errors import Problem
from peftc.methods import METHODS
from peftc.spec.complaints import closest
from peftc.spec.document import Node, Plain, planted, shown

Settings = dict[str, Plain]

_PREFIX: Settings = {"method": "prefix", "length": 10, "reparametrize": {"hidden": 512}, "gate": {"kind": "sequence"}}
_LORA: Settings = {
    "method": "lora", "at": ["q", "v"], "rank": 8, "alpha": 16, "gate": {"kind": "sequence", "scope": "layer"},
}  # fmt: skip
_ADAPTER: Settings = {"method": "adapter", "variant": "pfeiffer", "reduction": 16, "gate": {"kind": "sequence"}}
_BITFIT: Settings = {"method": "bitfit"}
_MAM: tuple[Settings, ...] = (
    {"method": "prefix", "length": 30, "reparametrize": {"hidden": 800}},
    {"method": "adapter", "variant": "parallel", "reduction": 2, "scale": 4},
)

PRESETS: Mapping[str, tuple[Settings, ...]] = {
    "unipelt-ap": (_PREFIX, _ADAPTER),
    "unipelt-apl": (_PREFIX, _LORA, _ADAPTER),
    "unipelt-aplb": (_PREFIX, _LORA, _ADAPTER, _BITFIT),
    "mam": _MAM,
}
_PAPERS = {"unipelt-ap": "2110.07577", "unipelt-apl": "2110.07577", "unipelt-aplb": "2110.07577", "mam": "2110.04366"}
_METHODS = {str(method.model_fields["method"].default) for method in METHODS}
_WHERE = ("layers", "towers")
_REPLACES = {"bottleneck": "reduction"}


def expand(root: Node) -> tuple[Node, list[Problem]]:
    """The document with every preset replaced by its entries, and what is wrong with how presets are used."""
    methods = root.child("methods")
    if methods is None or not isinstance(methods.value, tuple) or not isinstance(root.value, Mapping):
        return root, []
    entries: list[Node] = []
    problems: list[Problem] = []
    for entry in methods.value:
        made, complaints = _made(entry)
        entries += made
        problems += complaints
    expanded = Node(tuple(entries), methods.place)
    return Node({**root.value, "methods": expanded}, root.place, root.keys), problems


def _made(entry: Node) -> tuple[list[Node], list[Problem]]:
    """What stands for an entry, and what is wrong with it; what is no preset stands for itself."""
    name, method = entry.child("preset"), entry.child("method")
    if name is not None:
        return _entries(entry, name)
    preset = str(method.value).lower().replace("_", "-") if method else ""
    if method is None or preset not in PRESETS:
        return [entry], []
    hint = f"it is a preset: write `preset: {preset}`"
    return [], [Problem(f"there is no method {shown(method.plain())}", method.place, hint)]


def _entries(entry: Node, name: Node) -> tuple[list[Node], list[Problem]]:
    settings = PRESETS.get(name.value) if isinstance(name.value, str) else None
    if settings is None:
        return [], [Problem(f"there is no preset {shown(name.plain())}", name.place, _meant(str(name.value)))]
    known = [str(part["method"]) for part in settings]
    problems = [problem for key in entry.keys if (problem := _misuse(entry, key, str(name.value), known))]
    return [_overridden(entry, planted(part, name.place), str(part["method"])) for part in settings], problems


def _meant(name: str) -> str:
    """A hint for what is no preset: it may be a method."""
    if name.lower() in _METHODS:
        return f"it is a method: write `method: {name.lower()}`"
    return closest(name, PRESETS, "the presets are")


def _misuse(entry: Node, key: str, preset: str, known: list[str]) -> Problem | None:
    """What is wrong with a key of a preset's entry, or None."""
    if key not in {"preset", *_WHERE, *known}:
        hint = closest(key, [*known, *_WHERE], "what can stand here:")
        return Problem(f"{preset} has nothing called {shown(key)}", entry.keys[key], hint)
    override = entry.child(key)
    if key in known and override and not isinstance(override.value, Mapping):
        return Problem(f"expected a mapping, the settings of {key}; got {shown(override.plain())}", override.place)
    if key in known and override and "method" in override.keys:
        return Problem("the preset says which method this is", override.keys["method"])
    return None


def _overridden(entry: Node, part: Node, method: str) -> Node:
    """One entry of a preset: its own settings, then the preset entry's layers and towers, then the override."""
    where = {key: node for key in _WHERE if (node := entry.child(key))}
    part = _merged(part, Node(where, entry.place, {key: entry.keys[key] for key in where}))
    override = entry.child(method)
    usable = override is not None and isinstance(override.value, Mapping) and "method" not in override.keys
    return _merged(part, override) if override and usable else part


def _merged(below: Node, above: Node) -> Node:
    """Two mappings, the second winning, mappings in them merged alike; anything else is replaced."""
    assert isinstance(below.value, Mapping) and isinstance(above.value, Mapping)
    dropped = {_REPLACES[key] for key in above.value if key in _REPLACES}
    values = {key: node for key, node in below.value.items() if key not in dropped}
    for key, node in above.value.items():
        both = isinstance(node.value, Mapping) and key in values and isinstance(values[key].value, Mapping)
        values[key] = _merged(values[key], node) if both else node
    return Node(values, below.place, {**below.keys, **above.keys})


def schemas(methods: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The JSON Schema of each preset's entry, given those of the methods."""
    return [_schema(name, parts, methods) for name, parts in PRESETS.items()]


def _schema(name: str, parts: tuple[Settings, ...], methods: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    properties: dict[str, Any] = {"preset": {"const": name, "description": f"arXiv:{_PAPERS[name]}"}}
    for part in parts:
        override = copy.deepcopy(methods[str(part["method"])])
        override["properties"].pop("method")
        override["required"] = []
        override["properties"]["gate"] = {"anyOf": [{"$ref": "#/$defs/GateOverride"}, {"type": "null"}]}
        override["description"] = f"settings of its {part['method']} that differ"
        properties[str(part["method"])] = override
    anything = next(iter(methods.values()))["properties"]
    properties |= {key: anything[key] for key in _WHERE}
    closed = {"required": ["preset"], "additionalProperties": False}
    return {"type": "object", "title": name, "properties": properties, **closed}
