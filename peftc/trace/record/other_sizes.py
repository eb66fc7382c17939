"""What a model does at other sizes than its examples have: recorded only where the trace of a unit asks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from torch import nn

from peftc.trace.record.calls import Recording, record
from peftc.trace.record.feeds import FAILURES, POINTS, Point, feed
from peftc.trace.record.inputs import Scenario
from peftc.trace.record.observed import Call, Observed

FACTORS = (8, 64)
Pair = tuple[Point, ...]


def times(point: Point, factor: int) -> Point:
    return replace(point, length=point.length * factor, past=point.past * factor, source=point.source * factor)


FEW = (Point(batch=7, length=2, past=1, source=3), Point(batch=8, length=3, past=2, source=4))
PAIRS: tuple[Pair, ...] = (FEW, *(tuple(times(point, factor) for point in POINTS) for factor in FACTORS))
ODD = ((20, 0), (0, 20))  # pixels down and across: few windows of patches divide as many
ODD_PAIRS: tuple[Pair, ...] = tuple(tuple(replace(point, beyond=more) for point in POINTS) for more in ODD)


@dataclass(frozen=True, eq=False)
class Elsewhere:
    """The calls of a model at other sizes: on few ids and on many, or on other pictures.  Each run is made once."""

    model: nn.Module
    observed: Observed
    recorded: dict[tuple[Scenario, Pair], tuple[Recording, ...]] = field(default_factory=dict)

    def calls(self, module: nn.Module) -> Iterator[Call]:
        """The calls of one module, of every scenario at every pair of points."""
        run = self.observed.twins.get(module, module)
        for points in self._pairs():
            for scenario in self.observed.recordings:
                pair = self._recordings(scenario, points)
                if pair and all(run in recording.calls for recording in pair):
                    yield tuple(recording.calls[run] for recording in pair)

    def _pairs(self) -> tuple[Pair, ...]:
        reads = feed(self.model)
        if reads.is_text:
            return PAIRS
        sizes = {tuple(i.shape(point) for i in reads.inputs) for (point, _) in (POINTS, *ODD_PAIRS)}
        return ODD_PAIRS if len(sizes) > 1 else ()

    def _recordings(self, scenario: Scenario, points: Pair) -> tuple[Recording, ...]:
        """One recording per point; none where the model cannot be run at these sizes."""
        if (scenario, points) not in self.recorded:
            try:
                found = [record(self.model, scenario, point, self.observed.twins) for point in points]
            except FAILURES:
                found = []
            self.recorded[scenario, points] = tuple(r for r in found if r is not None)
        return self.recorded[scenario, points]
