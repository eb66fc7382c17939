"""Bodies as classes: what a class adds to its unit, and where it goes."""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from operator import itemgetter
from textwrap import wrap

from peftc import modules
from peftc.emit.literal import WIDTH, literal
from peftc.errors import Defect
from peftc.methods.call import ModuleCall
from peftc.rewrite.program import Addition, Body
from peftc.rewrite.share import numbered
from peftc.spec.layers import number, ranges
from peftc.spec.patterns import compress, template

INDENT = 8  # of a statement in a method


@dataclass(frozen=True)
class Class:
    """A body, or those of its paths whose layer numbers tell them apart, under a name of its own."""

    name: str
    body: Body
    paths: tuple[str, ...]


def classes(bodies: Collection[Body]) -> tuple[Class, ...]:
    """One class per body's name; one per tower where the towers number alike what differs between them."""
    alike: dict[str, list[Body]] = {}
    for body in bodies:
        alike.setdefault(body.name, []).append(body)
    found: dict[str, Class] = {}
    for unit in (unit for same in alike.values() for unit in _split(_whole(same))):
        names = (unit.name, *(numbered(unit.name, n) for n in range(2, len(found) + 2)))
        name = next(name for name in names if name not in found)
        found[name] = replace(unit, name=name)
    return tuple(found.values())


def _whole(same: Sequence[Body]) -> Body:
    """Bodies of one code as one, at the paths of all."""
    first, *_ = same
    paths = tuple(path for body in same for path in body.paths)
    layers = {path: layer for body in same for path, layer in body.layers.items()}
    each = zip(*(body.additions for body in same), strict=True)
    additions = tuple(Addition(a[0].name, {p: c for part in a for p, c in part.calls.items()}) for a in each)
    return replace(first, paths=paths, additions=additions, layers=layers)


def _split(body: Body) -> list[Class]:
    layers = [number(path) for path in body.paths]
    uniform = all(len(set(addition.calls.values())) == 1 for addition in body.additions)
    if uniform or len(set(layers)) == len(layers):
        return [Class(body.name, body, body.paths)]
    alone = len(set(map(template, body.paths))) == len(layers)  # then no number tells two of them apart
    groups: dict[str, list[str]] = {}
    for path in body.paths:
        added = repr([addition.calls[path] for addition in body.additions])
        groups.setdefault(added if alone else template(path), []).append(path)
    firsts = [template(paths[0]) for paths in groups.values()]
    names = [body.name + _suffix(first, firsts) for first in firsts]
    if len(set(names)) < len(names):
        names = [numbered(body.name, number) for number in range(1, len(names) + 1)]
    return [Class(name, body, tuple(paths)) for name, paths in zip(names, groups.values(), strict=True)]


def _suffix(own: str, others: Collection[str]) -> str:
    """The parts of a path that not all share, in camel case."""
    common = set.intersection(*(set(other.split(".")) for other in others))
    words = [word for part in own.split(".") if part not in common for word in re.findall(r"[A-Za-z]+", part)]
    return "".join(word.capitalize() for word in words)


def class_text(unit: Class, base: str, forward: tuple[str, ...], shared: Collection[str]) -> str:
    """The source of a unit's class."""
    tower = "".join(f", {name}" for name in unit.body.towers)
    body = [*docstring(f"{_where(unit)}{tower}: {'; '.join(unit.body.summary)}"), ""]
    body += ["def attach(self, model, layer):", *_attached(unit, shared), "", *forward]
    return "\n".join([f"class {unit.name}({base}):", *(f"    {row}".rstrip() for row in body)])


def _where(unit: Class) -> str:
    """The layers, as a spec counts them; the path of what is in none."""
    layers = {unit.body.layers[path] for path in unit.paths if path in unit.body.layers}
    if not layers:
        return ", ".join(compress(unit.paths))
    return f"{'Layer' if len(layers) == 1 else 'Layers'} {ranges(layers)}"


def docstring(text: str) -> list[str]:
    """A docstring on one line where it fits, else its first line and the rest."""
    text = text.rstrip(".") + "."
    text = text.replace("\\", "\\\\").replace('"""', '\\"\\"\\"')
    rows = wrap(text, WIDTH - 7, break_long_words=False)
    if len(text) + 10 <= WIDTH:
        return [f'"""{text}"""']
    return [f'"""{rows[0]}', *rows[1:], '"""']


def _attached(unit: Class, shared: Collection[str]) -> list[str]:
    rows = [f"    {row}" for addition in unit.body.additions for row in _assignment(unit, addition, shared)]
    return rows or ['    """Nothing: what trains is the base\'s own."""']


def _assignment(unit: Class, addition: Addition, shared: Collection[str]) -> list[str]:
    calls = {path: addition.calls[path] for path in unit.paths}
    head = f"self.{addition.name} = "
    return (head + call_text(calls, shared, len(head))).split(f"\n{' ' * INDENT}")


def call_text(calls: Mapping[str, ModuleCall], shared: Collection[str], used: int) -> str:
    """A constructor call in a method, behind `used` columns, without its defaults.

    What differs between the paths is looked up by layer.
    """
    (name,) = {call.name for call in calls.values()}
    default = {key: p.default for key, p in inspect.signature(getattr(modules, name)).parameters.items()}
    values = {
        key: {path: dict(call.arguments)[key] for path, call in calls.items()} for key, _ in _any(calls).arguments
    }
    written = [
        f"{key}={_argument(by_path, shared)}"
        for key, by_path in values.items()
        if set(map(repr, by_path.values())) != {repr(default[key])}
    ]
    flat = f"{name}({', '.join(written)})"
    if INDENT + used + len(flat) <= WIDTH:
        return flat
    joined = ", ".join(written)
    rows = [joined] if INDENT + 4 + len(joined) <= WIDTH else [f"{row}," for row in written]
    return f"\n{' ' * INDENT}".join([f"{name}(", *(f"    {row}" for row in rows), ")"])


def _any(calls: Mapping[str, ModuleCall]) -> ModuleCall:
    return next(iter(calls.values()))


def _argument(by_path: Mapping[str, object], shared: Collection[str]) -> str:
    values = list(by_path.values())
    if len(set(map(repr, values))) == 1:
        return _value(values[0], shared)
    if all(number(path) == value and not isinstance(value, bool) for path, value in by_path.items()):
        return "layer"
    by_layer = {number(path): value for path, value in by_path.items()}
    if len(by_layer) != len(by_path) or None in by_layer:
        raise Defect(f"no layer number tells apart what differs between {', '.join(by_path)}")
    return _by_layer({layer: _value(value, shared) for layer, value in by_layer.items() if layer is not None})


def _by_layer(written: Mapping[int, str]) -> str:
    """An expression in `layer`: conditions where few layers change what is written, else a table."""
    runs = [(text, next(run)[0]) for text, run in groupby(sorted(written.items()), key=itemgetter(1))]
    if len(runs) <= 3:
        changes = [f"{text} if layer < {first}" for (text, _), (_, first) in pairwise(runs)]
        return " else ".join([*changes, runs[-1][0]])
    if list(written) == list(range(len(written))):
        return f"({', '.join(written.values())})[layer]"
    return "{" + ", ".join(f"{layer}: {text}" for layer, text in written.items()) + "}[layer]"


def _value(value: object, shared: Collection[str]) -> str:
    if isinstance(value, str) and value in shared:
        return f"model.{value}"
    if isinstance(value, tuple) and len(value) > 4 and len(set(value)) == 1:
        return f"({literal(value[0])},) * {len(value)}"
    return literal(value, used=-10_000)


def placed(units: Collection[Class]) -> dict[str, str]:
    """UNITS: pattern -> class name."""
    return {pattern: unit.name for unit in units for pattern in compress(unit.paths)}
