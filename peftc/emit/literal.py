"""Python values as source text that a formatter leaves alone."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite

WIDTH = 120


def quoted(text: str) -> str:
    """A string in double quotes where that needs no more escapes than single quotes do."""
    plain = repr(text)
    if plain[0] == '"':
        return plain
    inner = plain[1:-1]
    if '"' in inner and "\\'" not in inner:
        return plain
    return '"' + inner.replace("\\'", "'").replace('"', '\\"') + '"'


def literal(value: object, indent: int = 0, used: int = 0) -> str:
    """A value on one line where it fits after `used` columns, else one item a line, with a trailing comma."""
    flat = _flat(value)
    if not isinstance(value, Mapping | tuple | list) or not value or len(flat) + indent + used <= WIDTH:
        return flat
    inner, pad = indent + 4, " " * (indent + 4)
    opening, closing = "{}" if isinstance(value, Mapping) else "()" if isinstance(value, tuple) else "[]"
    if isinstance(value, Mapping):
        rows = [_entry(key, item, inner) for key, item in value.items()]
    else:
        rows = [literal(item, inner, 1) for item in value]
    return "\n".join([opening, *(f"{pad}{row}," for row in rows), " " * indent + closing])


def _entry(key: object, item: object, indent: int) -> str:
    head = _flat(key) + ": "
    return head + literal(item, indent, len(head) + 1)


def _flat(value: object) -> str:
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_flat(k)}: {_flat(v)}" for k, v in value.items()) + "}"
    if isinstance(value, tuple):
        items = [_flat(item) for item in value]
        return f"({items[0]},)" if len(items) == 1 else f"({', '.join(items)})"
    if isinstance(value, list):
        return "[" + ", ".join(_flat(item) for item in value) + "]"
    if isinstance(value, float) and not isfinite(value):
        return f'float("{value}")'
    return repr(value)
