"""Names for the attributes that a plan adds: readable, valid, and none taken twice."""

from __future__ import annotations

import keyword
from collections.abc import Sequence
from itertools import count

from peftc.graph.sites import Embedding, Projection, Site, Trace, Unit


class Attributes:
    """The attribute names of every module of a base, and those given since."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.taken: dict[str, set[str]] = {}

    def at(self, path: str, name: str, number: int = 1) -> str:
        """A name that the module at `path` does not have yet: with its number, or the next.  It counts as given."""
        taken = self.taken.setdefault(path, set())
        if not taken:
            taken |= set(dir(self.trace.model.get_submodule(path)))
        while (given := name if number == 1 else f"{name}_{number}") in taken:
            number += 1
        taken.add(given)
        return given

    def label(self, unit: Unit, site: Site) -> str:
        """The site's own label, or its name where the label is no identifier or another site of the unit has it too."""
        alike = [other for other in unit.sites if other.label == site.label and _module(other) != _module(site)]
        usable = site.label.isidentifier() and not keyword.iskeyword(site.label)
        return site.label if usable and not alike else site.name.replace(".", "_")


def numbers(wanted: Sequence[tuple[int, str, str]]) -> dict[tuple[int, str], int]:
    """One number for each entry and name of (entry, path, name): entries that meet at some path never have the same.

    So a name stands for the same entry in every layer, also in those where only one of them is.
    """
    meeting: dict[tuple[str, str], set[int]] = {}
    for entry, path, name in wanted:
        meeting.setdefault((path, name), set()).add(entry)
    found: dict[tuple[int, str], int] = {}
    for entry, name in dict.fromkeys((entry, name) for entry, _, name in wanted):
        others = {other for (_, n), entries in meeting.items() if n == name and entry in entries for other in entries}
        used = {found.get((other, name)) for other in others - {entry}}
        found[entry, name] = next(n for n in count(1) if n not in used)
    return found


def _module(site: Site) -> str:
    return site.module if isinstance(site, Projection | Embedding) else site.name
