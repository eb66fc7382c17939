"""Specs of one run whose artifacts would be one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from peftc.errors import Problem
from peftc.spec.schema import Spec


def collisions(specs: Sequence[Spec]) -> list[Problem]:
    """Two specs whose artifacts would be one folder or one module, on any file system."""
    first: dict[str, Spec] = {}
    problems = []
    for spec in specs:
        other = first.setdefault(spec.name.replace("-", "_").casefold(), spec)
        if other is not spec:
            problems.append(_collision(spec, other))
    return problems


def _collision(spec: Spec, other: Spec) -> Problem:
    here, there = spec.origin.place("name"), other.origin.place("name")
    if here and there and Path(here.file).resolve() == Path(there.file).resolve():
        return Problem(f"{here.file} is given twice", hint="name it once")
    where = f" ({there.file})" if there else ""
    message = f"two specs of this run are named {spec.name!r} and {other.name!r}{where}: their artifacts would be one"
    return Problem(message, here, "give each spec a name of its own")
