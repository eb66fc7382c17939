"""The tables of the docs, from the values that peftc itself reads: the JSON Schema, METHODS, PRESETS, PASSES."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Iterator
from itertools import product
from typing import Any, get_args

from peftc.graph.sites import Attention, Projection, Sublayer
from peftc.methods import METHODS
from peftc.methods.additive import Additive
from peftc.methods.base import Method
from peftc.methods.gate import Gate, Kind
from peftc.spec.presets import PRESETS
from peftc.spec.schema import json_schema

SCHEMA = json_schema()
DEFINITIONS: dict[str, Any] = SCHEMA["$defs"]
COMMON = ("method", "at", "modules", "layers", "towers", "gate", "again")
ENDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


def marked(name: str) -> str:
    """A table between its marks."""
    return f"<!-- table {name} -->\n{TABLES[name]()}\n<!-- end -->"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [tuple(head), *map(tuple, rows)]
    lines.insert(1, ("---",) * len(lines[0]))
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def keys(properties: dict[str, Any], required: Iterable[str] = ()) -> str:
    rows = (
        (f"`{key}`", kind(value), default(value, key in required), value.get("description", ""))
        for key, value in properties.items()
    )
    return table(("key", "value", "default", "what it is"), rows)


def default(value: dict[str, Any], required: bool) -> str:
    if required:
        return "required"
    found = value.get("default")
    empty = found in (None, []) or (isinstance(found, dict) and not any(found.values()))
    return "" if empty else f"`{json.dumps(found)}`"


def kind(value: dict[str, Any]) -> str:
    """The type of a setting in words."""
    if "$ref" in value:
        name = value["$ref"].rsplit("/", 1)[-1]
        return f"[{name}](#{name.lower()})" if name != "JsonValue" else "anything"
    if "anyOf" in value:
        kinds = dict.fromkeys(kind(part) for part in value["anyOf"] if part.get("type") != "null")
        return " or ".join(kinds)
    if "const" in value:
        return f"`{value['const']}`"
    if "enum" in value:
        return ", ".join(f"`{word}`" for word in value["enum"])
    if value.get("type") == "array":
        return f"list of {kind(value['items'])}" if "type" in value["items"] else "list"
    ends = [f"{sign} {value[key]}" for key, sign in ENDS.items() if key in value]
    return " ".join([{"object": "mapping"}.get(value["type"], value["type"]), *ends])


def word(method: type[Method]) -> str:
    """What a spec calls it."""
    return str(get_args(method.model_fields["method"].annotation)[0])


def title(method: type[Method]) -> str:
    return f"**{word(method)}**: {method.summary}"


def settings() -> str:
    return "\n\n".join(part for method in METHODS for part in _settings(method))


def _settings(method: type[Method]) -> Iterator[str]:
    yield f"### {word(method)}\n\n{method.summary}; {method.paper}."
    own = {k: v for k, v in DEFINITIONS[method.__name__]["properties"].items() if k not in COMMON}
    yield keys(own) if own else "No settings of its own."


def common() -> str:
    properties = next(iter(DEFINITIONS[method.__name__] for method in METHODS))["properties"]
    chosen = {key: properties[key] for key in COMMON}
    chosen["method"] = {"enum": [word(method) for method in METHODS], "description": "which method"}
    return keys(chosen, ("method",))


def presets() -> str:
    rows = ((f"`{name}`", "<br>".join(f"`{json.dumps(part)}`" for part in parts)) for name, parts in PRESETS.items())
    return table(("preset", "entries"), rows)


def methods() -> str:
    head = ("method", "what it does", "stands at", "trains, per site", "identity at first", "paper")
    return table(head, map(_method, METHODS))


def _method(method: type[Method]) -> tuple[str, ...]:
    plain = method.model_validate({"method": word(method)})
    sites = ", ".join(f"`{site}`" for site in plain.default_sites()) or "what it selects"
    formula = str(inspect.getdoc(method.cost)) if issubclass(method, Additive) else "what it selects, of the base"
    identity = "yes" if method.identity_at_init else "no"
    return f"`{word(method)}`", method.summary, sites, formula, identity, method.paper


def gates() -> str:
    """Which gate a method takes at the site where it stands, asked of the methods."""
    kinds: tuple[Kind, ...] = get_args(Kind)
    rows = []
    for method, causal in product(METHODS, (False, True)):
        plain = method.model_validate({"method": word(method)})
        taken = (_takes(plain, Gate(kind=k, shared="g" if k == "central" else None), causal) for k in kinds)
        rows.append((f"`{word(method)}`", "causal" if causal else "not causal", *taken))
    return table(("method", "unit", *(f"`{name}`" for name in kinds)), rows)


def _takes(method: Method, gate: Gate, causal: bool) -> str:
    if not isinstance(method, Additive):
        return "no"
    where: dict[str, Any] = {"causal": causal, "mask": "mask"}
    q = Projection("q", "query", "query", "query", 8, 8, **where)
    attention = Attention("attention", "attend", "key", "x", 8, 8, 8, **where)
    ffn = Sublayer("ffn", "output", "residual", "sum", None, "x", 8, **where)
    sites = [site for site in (q, attention, ffn) if method.refusal(site) is None]
    return "yes" if method.gate_refusal(gate, sites[0]) is None else "no"


TABLES = {
    "spec": lambda: keys(SCHEMA["properties"], SCHEMA["required"]),
    "base": lambda: keys(DEFINITIONS["Base"]["properties"]),
    "entry": common,
    "settings": settings,
    "gate": lambda: keys(DEFINITIONS["Gate"]["anyOf"][1]["properties"], ("kind",)),
    "reparametrisation": lambda: keys(DEFINITIONS["Reparametrisation"]["properties"]),
    "limits": lambda: keys(DEFINITIONS["Limits"]["properties"]),
    "presets": presets,
    "methods": methods,
    "gates": gates,
}
