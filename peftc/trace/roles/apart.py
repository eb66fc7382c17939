"""Units that may be told to go a way which has no trace: their linear maps become units, which work on that way too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from torch import fx, nn

from peftc.graph.branches import assume
from peftc.graph.sites import Attention, Projection, Unit
from peftc.trace.record.calls import Recorded, Recording, record_really
from peftc.trace.record.feeds import POINTS
from peftc.trace.record.leaf_calls import otherwise
from peftc.trace.record.observed import Observed
from peftc.trace.roles.standalone import NODE, alone

Instance = tuple[str, Unit]


@dataclass(frozen=True, eq=False)
class Apart:
    """Parts the units of a model that asks numbers which way to go, and hands the answer down as flags."""

    model: nn.Module
    observed: Observed
    parted: dict[Unit, tuple[Unit, ...]] = field(default_factory=dict)

    def of(self, path: str, unit: Unit) -> tuple[Instance, ...]:
        """A unit at one of its paths; where it refuses a flag that numbers decide, its linear maps before it."""
        if unit not in self.parted:
            refused = dict(self._refused(unit))
            self.parted[unit] = tuple(self._parts(unit, refused)) if refused else (unit,)
        *maps, rest = self.parted[unit]
        index = unit.paths.index(path)
        return (*((part.paths[index], part) for part in maps), (path, rest))

    def _parts(self, unit: Unit, refused: Mapping[str, bool]) -> Iterator[Unit]:
        maps = [site for site in unit.sites if isinstance(site, Projection) and site.rows is None]
        for site in maps:
            single = replace(site, module="", node=NODE, output=NODE, mask=None, again=())
            yield alone(self.model, [f"{path}.{site.module}" for path in unit.paths], single)
        usual = self._really.get(unit.paths[0])
        given = {flag: usual.named.get(flag) for flag in refused} if usual else {}
        turned = next((f"{flag}={value}" for flag, value in given.items() if value != refused[flag]), "")
        why = f"goes a way that is not traced: on plain inputs its model gives {turned}" if turned else None
        others = [site for site in unit.sites if site not in maps]
        sites = (replace(site, written=why) if why and isinstance(site, Attention) else site for site in others)
        yield replace(unit, sites=tuple(sites))

    def _refused(self, unit: Unit) -> Iterator[tuple[str, bool]]:
        """The flags that a unit takes one way only, where other numbers turn them round; and that way."""
        asked = [n.args[0] for n in unit.graph.nodes if n.target is assume]
        flags = {str(n.target): n.meta["value"][0] for n in asked if isinstance(n, fx.Node) and n.op == "placeholder"}
        flags = {name: value for name, value in flags.items() if isinstance(value, bool)}
        recording, readers = self._otherwise if flags else (None, frozenset())
        if recording is None or unit.name in readers:
            return
        module = self.model.get_submodule(unit.paths[0])
        call = recording.calls.get(self.observed.twins.get(module, module))
        if call is not None:
            yield from ((name, value) for name, value in flags.items() if call.named.get(name) != value)

    @cached_property
    def _otherwise(self) -> tuple[Recording | None, frozenset[str]]:
        return otherwise(self.model, self.observed)

    @cached_property
    def _really(self) -> Mapping[str, Recorded]:
        return record_really(self.model, POINTS[0])
