"""Which layers an entry means: all, 0-5, "0, 3, 7-", last 4, even, odd."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import groupby

Layers = str | int | tuple[int, ...]

NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")
_TERM = re.compile(
    r"(?P<word>all|even|odd)|last\s+(?P<last>\d{1,6})|(?P<low>\d{1,6})(?P<dash>\s*-\s*(?P<high>\d{1,6})?)?", re.ASCII
)


class LayersError(ValueError):
    """A layer selector that cannot be read, or that names a layer which does not exist."""


def select(layers: Layers, count: int) -> tuple[int, ...]:
    """The indices that a selector means in a tower of `count` layers, ascending.  Raises LayersError."""
    chosen = {index for term in _terms(layers) for index in _indices(term, count)}
    missing = [index for index in chosen if index >= count]
    if missing:
        raise LayersError(f"there is no layer {max(missing)}; {_extent(count)}")
    return tuple(sorted(chosen))


def ranges(numbers: Iterable[int]) -> str:
    """0, 1, 2, 5 -> "0-2, 5", the selector that means these layers."""
    ordered = enumerate(sorted(set(numbers)))
    runs = [[number for _, number in run] for _, run in groupby(ordered, key=lambda pair: pair[1] - pair[0])]
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def number(name: str) -> int | None:
    """The first number of a dotted name: the layer it belongs to, where a model has no stages."""
    found = NUMBER.search(name)
    return int(found.group()) if found else None


def check(layers: Layers) -> None:
    """Raise LayersError where a selector cannot be read, whatever the number of layers."""
    _terms(layers)


def _terms(layers: Layers) -> list[re.Match[str]]:
    if layers == ():
        raise LayersError("an empty list chooses no layers: write all, or leave it out")
    parts = [str(part) for part in layers] if isinstance(layers, tuple) else str(layers).split(",")
    return [_term(part.strip()) for part in parts]


def _term(text: str) -> re.Match[str]:
    if re.fullmatch(r"-\d+", text):
        raise LayersError(f"layers count from 0, so there is no layer {text}; the last one is `last 1`")
    match = _TERM.fullmatch(text)
    if match is None:
        raise LayersError(f"{text[:40]!r} means no layers: write all, 3, 0-5, 7-, even, odd, last 4, or several")
    if match["high"] and int(match["high"]) < int(match["low"]):
        raise LayersError(f"the range {text} runs backwards")
    return match


def _indices(term: re.Match[str], count: int) -> range:
    if term["word"]:
        return range(1 if term["word"] == "odd" else 0, count, 1 if term["word"] == "all" else 2)
    if term["last"]:
        return _last(int(term["last"]), count)
    low = int(term["low"])
    if not term["dash"]:
        return range(low, low + 1)
    high = int(term["high"]) if term["high"] else max(low, count - 1)
    return range(low, high + 1)


def _last(size: int, count: int) -> range:
    if not 0 < size <= count:
        raise LayersError(f"there are no last {size} layers; {_extent(count)}")
    return range(count - size, count)


def _extent(count: int) -> str:
    return f"the layers are 0 to {count - 1}" if count else "there are no layers"
