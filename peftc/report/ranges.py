"""Runs of numbers and of paths, written short."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby


def ranges(numbers: Iterable[int]) -> str:
    """0, 1, 2, 5 -> "0-2, 5"."""
    ordered = enumerate(sorted(set(numbers)))
    runs = [[number for _, number in run] for _, run in groupby(ordered, key=lambda pair: pair[1] - pair[0])]
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def pattern(paths: Sequence[str]) -> str:
    """Paths that differ in one number -> "encoder.layer.{0-11}.attention"; other paths joined by commas."""
    columns = list(zip(*(path.split(".") for path in paths), strict=False))
    differing = [index for index, column in enumerate(columns) if len(set(column)) > 1]
    same_depth = len({path.count(".") for path in paths}) == 1
    if not same_depth or len(differing) != 1 or not all(part.isdigit() for part in columns[differing[0]]):
        return ", ".join(paths)
    parts = paths[0].split(".")
    parts[differing[0]] = "{" + ranges(int(part) for part in columns[differing[0]]) + "}"
    return ".".join(parts)
