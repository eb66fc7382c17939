"""pydantic's errors in plain words, each at its place in the file."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from peftc.errors import Place, Problem
from peftc.spec.document import Node, Step, shown

_SHOWN = 100
_TYPO = 0.9  # how alike a mistyped word is; a less alike one may be another word
_ENTRY = "as in `method: lora`, or `preset: unipelt-apl`"
_NO_NAME = "string_pattern_mismatch"
_EXPECTED = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "none_required": "nothing",
}
_BOUNDS = {
    "greater_than": ("more than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}


def complaints(error: ValidationError, root: Node, schema: dict[str, Any]) -> list[Problem]:
    """Every error as a problem; those of one value's several types become one."""
    groups: dict[tuple[Step, ...], list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        path = _path(detail, root)
        if detail["type"] != "too_short" or not root.nearest(path).plain():
            groups.setdefault(path, []).append(detail)
    found = [_complaint(path, details, root, schema) for path, details in list(groups.items())[:_SHOWN]]
    if len(groups) > _SHOWN:
        found.append(Problem(f"and {len(groups) - _SHOWN} more complaints"))
    return found


def closest(name: str, known: Iterable[str], what: str) -> str:
    """A hint: the name that was probably meant, or all of them."""
    names = list(known)
    likely = difflib.get_close_matches(name[:80].lower(), names, n=1)
    return f"did you mean {likely[0]!r}?" if likely else f"{what} {', '.join(names)}"


def _path(detail: ErrorDetails, root: Node) -> tuple[Step, ...]:
    """An error's path in the file: without the tags that pydantic puts between, with a missing key at its end."""
    steps = detail["loc"]
    if len(steps) > 2 and steps[0] == "methods":
        steps = steps[:2] + steps[3:]
    path: tuple[Step, ...] = ()
    node = root
    for step in steps:
        below = node.child(step)
        if below is None:
            break
        node, path = below, (*path, step)
    return (*path, steps[-1]) if detail["type"] == "missing" else path


def _complaint(path: tuple[Step, ...], details: list[ErrorDetails], root: Node, schema: dict[str, Any]) -> Problem:
    first, node = details[0], root.nearest(path)
    if first["type"] == "extra_forbidden":
        return _unknown_key(path, first, root, schema)
    if first["type"] == "missing":
        return Problem(f"the key {shown(path[-1])} is missing here", _opening(node.place))
    if first["type"] == "union_tag_not_found":
        spaced = "; a space follows the colon" if any(":" in key for key in node.keys) else ""
        return Problem("an entry is a method or a preset", _opening(node.place), _ENTRY + spaced)
    if first["type"] == "union_tag_invalid":
        return _unknown_method(first, node)
    if first["type"] == "literal_error":
        return _unknown_word(first, node)
    expected = list(dict.fromkeys(_EXPECTED[d["type"]] for d in details if d["type"] in _EXPECTED))
    if expected:
        expected = expected if "text" in expected or not _takes_text(schema, first["loc"]) else ["text", *expected]
        message = f"expected {' or '.join(expected)}, got {shown(node.plain())}"
        return Problem(message, node.place, _shaped(path, expected, node))
    return Problem(_sentence(first, node), node.place, _spelled(node) if first["type"] == _NO_NAME else None)


def _shaped(path: tuple[Step, ...], expected: list[str], node: Node) -> str | None:
    """A hint for a value of the wrong kind, where something can be said that the message does not say."""
    if not path:
        return "a spec has the keys name, base and methods"
    if path[0] == "methods" and len(path) < 3:
        return "each entry begins with a dash: `- method: lora`" if len(path) == 1 else _ENTRY
    if path == ("base",) and isinstance(node.value, str):
        return f"as in `base: {{model: {node.value}}}`"
    return "in quotes it is text" if expected == ["text"] and isinstance(node.value, int | float) else None


def _spelled(node: Node) -> str | None:
    """A hint for a name that only its underscores and spaces keep from being one."""
    name = str(node.plain()).replace("_", "-").replace(" ", "-")
    return f"as in {name!r}" if name != node.value and re.fullmatch("[A-Za-z][A-Za-z0-9-]{0,63}", name) else None


def _unknown_key(path: tuple[Step, ...], detail: ErrorDetails, root: Node, schema: dict[str, Any]) -> Problem:
    parent, key = root.nearest(path[:-1]), str(path[-1])
    hint = closest(key, _keys(schema, detail["loc"][:-1]), "the keys here are")
    return Problem(f"unknown key {shown(key)}", parent.keys.get(key, parent.place), hint)


def _unknown_method(detail: ErrorDetails, node: Node) -> Problem:
    tag = node.child("method") or node
    names = [name.strip(" '") for name in str(detail["ctx"]["expected_tags"]).split(",")]
    if not isinstance(tag.value, str):
        hint = f"the methods are {', '.join(names)}"
        return Problem(f"expected the name of a method, got {shown(tag.plain())}", tag.place, hint)
    return Problem(f"there is no method {shown(tag.value)}", tag.place, closest(tag.value, names, "the methods are"))


def _unknown_word(detail: ErrorDetails, node: Node) -> Problem:
    words = [word.strip(" '") for word in str(detail["ctx"]["expected"]).replace(" or ", ", ").split(",")]
    if not isinstance(node.value, str):
        return Problem(f"expected one of {', '.join(words)}; got {shown(node.plain())}", node.place)
    hints = [closest(node.value, words, "it is one of"), f"it is one of {', '.join(words)}"]
    typo = difflib.get_close_matches(node.value[:80].lower(), words, 1, _TYPO)
    hint = " ".join(dict.fromkeys(hints[: 1 if typo else 2]))
    return Problem(f"{shown(node.value)} is not possible here", node.place, hint)


def _sentence(detail: ErrorDetails, node: Node) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    if kind in _BOUNDS:
        word, name = _BOUNDS[kind]
        return f"expected {word} {context[name]}, got {shown(node.plain())}"
    if kind == "value_error":
        return str(context["error"])
    if kind == _NO_NAME:
        return f"{shown(node.plain())} is no name: letters, digits and hyphens, a letter first, at most 64"
    if kind == "too_short":
        return "an empty list chooses nothing"
    if kind == "string_too_short":
        return "something is missing here"
    return detail["msg"][:1].lower() + detail["msg"][1:]


def _opening(place: Place) -> Place:
    """The first word of a place: enough to point at a mapping that lacks something."""
    word = place.text[place.column - 1 :].split(":")[0]
    return Place(place.file, place.line, place.column, place.text, max(1, min(place.width, len(word))))


def _keys(schema: dict[str, Any], path: tuple[Step, ...]) -> tuple[str, ...]:
    """The keys that the JSON Schema allows at a path of pydantic's (its tags included)."""
    return tuple(dict.fromkeys(key for node in _nodes(schema, path) for key in node.get("properties", {})))


def _takes_text(schema: dict[str, Any], path: tuple[Step, ...]) -> bool:
    """Whether the JSON Schema allows text at a path: what a short form stands for, pydantic alone does not say."""
    return any(node.get("type") == "string" for node in _nodes(schema, path))


def _nodes(schema: dict[str, Any], path: tuple[Step, ...]) -> list[dict[str, Any]]:
    """The alternatives that the JSON Schema has at a path."""
    nodes = _resolved(schema, schema)
    for step in path:
        nodes = [found for node in nodes for below in _below(node, step) for found in _resolved(below, schema)]
    return nodes


def _below(node: Mapping[str, Any], step: Step) -> list[dict[str, Any]]:
    if isinstance(step, int):
        return [node["items"]] if "items" in node else []
    tagged = node.get("discriminator", {}).get("mapping", {})
    if step in tagged:
        return [{"$ref": tagged[step]}]
    properties = node.get("properties", {})
    return [properties[step]] if step in properties else [dict(node)]


def _resolved(node: dict[str, Any], schema: dict[str, Any]) -> list[dict[str, Any]]:
    """A node with its references followed and its alternatives side by side; a tagged union stays whole."""
    if "$ref" in node:
        return _resolved(schema["$defs"][node["$ref"].rsplit("/", 1)[-1]], schema)
    if "discriminator" in node:
        return [node]
    options = node.get("anyOf", []) + node.get("oneOf", []) + node.get("allOf", [])
    return [found for option in options for found in _resolved(option, schema)] if options else [node]
