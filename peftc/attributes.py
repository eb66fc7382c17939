"""Names for the attributes that a plan adds: readable, valid, and none taken twice."""

from __future__ import annotations

import keyword

from peftc.graph.sites import Embedding, Projection, Site, Trace, Unit


class Attributes:
    """The attribute names of every module of a base, and those given since."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.taken: dict[str, set[str]] = {}

    def at(self, path: str, name: str) -> str:
        """A name that the module at `path` does not have yet: itself, or with _2, _3, …  It counts as given."""
        taken = self.taken.setdefault(path, set())
        if not taken:
            taken |= set(dir(self.trace.model.get_submodule(path)))
        given, number = name, 1
        while given in taken:
            number += 1
            given = f"{name}_{number}"
        taken.add(given)
        return given

    def label(self, unit: Unit, site: Site) -> str:
        """The site's own label, or its name where the label is no identifier or another site of the unit has it too."""
        alike = [other for other in unit.sites if other.label == site.label and _module(other) != _module(site)]
        usable = site.label.isidentifier() and not keyword.iskeyword(site.label)
        return site.label if usable and not alike else site.name.replace(".", "_")


def _module(site: Site) -> str:
    return site.module if isinstance(site, Projection | Embedding) else site.name
