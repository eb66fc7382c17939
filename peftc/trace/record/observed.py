"""What a model does on the meta device: the calls of its modules, which of them attend, which it replaces."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from traceback import walk_tb

from torch import nn

from peftc.errors import PeftcError, Problem
from peftc.trace.record import meta
from peftc.trace.record.calls import Recorded, Recording, record, together
from peftc.trace.record.feeds import FAILURES, POINTS, Point, feed, reconsidered, unknown
from peftc.trace.record.inputs import SCENARIOS, Scenario
from peftc.trace.record.memo import signature
from peftc.trace.record.nested import tensors_in
from peftc.trace.record.numbers import on_numbers
from peftc.trace.record.pictures import USUAL, sees
from peftc.trace.record.source import said
from peftc.trace.record.submodels import inner_runs
from peftc.trace.record.taken import taken
from peftc.trace.record.twins import Twins, of_a_kind, twins

LONGEST = max(point.length + point.past for point in POINTS)
Call = tuple[Recorded, ...]
Runs = Mapping[Scenario, tuple[Recording, ...]]
FURTHER = (1, 8, 64)  # times the second point's lengths
LARGER = (1, 2)  # times the sides of its pictures


@dataclass(frozen=True, eq=False)
class Observed:
    """Every recording of a model: scenario -> one recording per example point; what was run for each module.

    `replaced`: the paths where a model puts a module of another class while it runs, and what it does there.
    `submodels` are the paths of models inside it that were run by themselves; `unfed` why others did not run: path ->
    why.  `refused`: the scenarios with something in the cache in which the model fails, and how.
    """

    recordings: Runs
    twins: Twins
    replaced: Mapping[str, str]
    submodels: tuple[str, ...]
    unfed: Mapping[str, str]
    refused: Mapping[Scenario, str]

    def calls(self, module: nn.Module) -> list[Call]:
        """The calls of one module, per scenario that reaches it, as one record per point; of equal ones the first.

        Of modules that are built like it, those that are given others of its arguments.
        """
        run, *others = of_a_kind(module, self.twins)
        distinct: dict[Hashable, Call] = {}
        for call in self._recorded(run):
            distinct.setdefault(signature([(r.named, r.extra) for r in call]), call)
        known = {_given(call) for call in distinct.values()}
        for call in (call for other in others for call in self._recorded(other)):
            if _given(call) not in known:
                known.add(_given(call))
                distinct[signature([(r.named, r.extra) for r in call])] = call
        return list(distinct.values())

    def _recorded(self, module: nn.Module) -> list[Call]:
        pairs = self.recordings.values()
        return [tuple(r.calls[module] for r in pair) for pair in pairs if all(module in r.calls for r in pair)]

    def continues(self, module: nn.Module) -> bool:
        """Whether a module runs on what comes next alone, where a cache holds the rest: it never looks ahead."""
        run = self.twins.get(module, module)
        pairs = (pair for scenario, pair in self.recordings.items() if scenario.continues)
        return any(run in recording.calls for pair in pairs for recording in pair)

    def attending(self, model: nn.Module) -> list[str]:
        """The paths of the modules that attend; what weighs does, where transformers takes its weights.

        Where nothing else is seen to attend, what weighs with heads folded into the batch may.
        """
        runs = [recording for pair in self.recordings.values() for recording in pair]
        seen, weighing = {m for r in runs for m in r.attending}, {m: w for r in runs for m, w in r.weighing.items()}
        asked = {self.twins.get(m, m) for m in map(model.get_submodule, taken(model, "attentions"))}
        attend = seen | (asked & weighing.keys()) or {module for module, folded in weighing.items() if folded}
        return [path for path, module in model.named_modules() if self.twins.get(module, module) in attend]


def given_in(call: Recorded) -> frozenset[str]:
    """The arguments of a call that are something."""
    return frozenset(name for name, value in call.named.items() if value is not None)


def _given(call: Call) -> frozenset[str]:
    return frozenset[str]().union(*map(given_in, call))


def observe(model: nn.Module) -> Observed:
    """Run the model on the meta device in every scenario that it has, and by themselves models in it that it misses."""
    alike, before = twins(model), classes(model)
    refused: dict[Scenario, str] = {}
    whole = _runs(model, alike, refused)
    called = {module for pair in whole.values() for recording in pair for module in recording.calls}
    ran = {module for module in model.modules() if alike.get(module, module) in called}
    found, unfed = inner_runs(model, ran, lambda inner: _runs(inner, alike, {}))
    inside = {path: runs for path, runs in found.items() if any(r.attending for pair in runs.values() for r in pair)}
    pairs = ((path, before.get(path), now) for path, now in classes(model).items())
    replaced = {path: f"{was} becomes {now} while the model runs" for path, was, now in pairs if was not in (None, now)}
    return Observed(_joined([whole, *inside.values()]), twins(model), replaced, tuple(inside), unfed, refused)


def _runs(model: nn.Module, alike: Twins, refused: dict[Scenario, str]) -> Runs:
    """The recordings of a model at the example points: on numbers where it fails without, or attends to nothing.

    Where it fails on numbers too, what it does not continue from is left to `refused`.
    """
    again = partial(on_numbers, model, lambda: _recordings(model, alike), (PeftcError,))
    try:
        found = _recordings(model, alike)
    except PeftcError:
        return again() or _recordings(model, alike, refused)
    idle = any(map(_is_idle, found.get(SCENARIOS[0], ())))
    return (again() if idle else None) or found


def _is_idle(recording: Recording) -> bool:
    """Whether what attends is given nothing: as many positions as a number says that was read as zero."""
    calls = (recording.calls.get(module) for module in recording.attending)
    return any(0 in (_shape(call) or ()) for call in calls if call is not None)


def _recordings(
    model: nn.Module, alike: Twins, refused: dict[Scenario, str] | None = None
) -> dict[Scenario, tuple[Recording, ...]]:
    """In every scenario that it has, but for those that it refuses."""
    recordings = {}
    points, pair = _examples(model, alike)
    for scenario in SCENARIOS:
        try:
            if scenario is not SCENARIOS[0]:
                pair = tuple(_recorded(model, scenario, point, alike) for point in points)
        except PeftcError as error:
            if refused is None or not scenario.continues:
                raise
            refused[scenario] = error.problems[0].message
            continue
        if all(pair):
            recordings[scenario] = tuple(r for r in pair if r is not None)
    return recordings


def _joined(found: Sequence[Runs]) -> Runs:
    """The recordings of several models by scenario and example point."""
    pairs = {scenario: [runs[scenario] for runs in found if scenario in runs] for scenario in SCENARIOS}
    return {scenario: tuple(map(together, zip(*same, strict=True))) for scenario, same in pairs.items() if same}


def _recorded(model: nn.Module, scenario: Scenario, point: Point, alike: Twins) -> Recording | None:
    try:
        return record(model, scenario, point, alike)
    except FAILURES as error:
        if _is_own(error):
            raise
        what = f"{type(model).__name__} fails on example inputs: {type(error).__name__}: {said(error)}"
        if isinstance(error, TypeError) and (names := unknown(model)):
            hint = f"nothing is given for {', '.join(names)}, whose names say nothing about them: give them defaults"
            raise PeftcError(Problem(what, hint=hint)) from error
        pictures = f", or on pictures of its config's image_size, {USUAL} without one" if sees(model) else ""
        inputs = f"batches of {' and '.join(str(p.batch) for p in POINTS)}, of up to {LONGEST} positions{pictures}"
        hint = f"peftc runs the base on {inputs}: its config must allow that, by its sizes and its pad_token_id"
        raise PeftcError(Problem(what, hint=hint)) from error


def _is_own(error: BaseException) -> bool:
    """Whether it was raised in a line of peftc, not in the model's code, nor in what stands there for torch's own."""
    modules = [str(frame.f_globals["__name__"]) for frame, _ in walk_tb(error.__traceback__)]
    *_, innermost = (module for module in modules if module != meta.__name__)
    return innermost.partition(".")[0] == __name__.partition(".")[0]


def _examples(model: nn.Module, alike: Twins) -> tuple[tuple[Point, Point], tuple[Recording | None, ...]]:
    """The example points, further apart for a model that makes the same length of both; the first scenario's recordings
    at them.
    """
    first = _first(model, alike)
    for second in _seconds(model):
        with suppress(*FAILURES):
            other = record(model, SCENARIOS[0], second, alike)
            if _differ(first, other):
                return (POINTS[0], second), (first, other)
    return POINTS, (first, _recorded(model, SCENARIOS[0], POINTS[1], alike))


def _first(model: nn.Module, alike: Twins) -> Recording | None:
    """The first scenario's recording at the first point: on what is rarely read, where that is what a model runs on."""
    try:
        return _recorded(model, SCENARIOS[0], POINTS[0], alike)
    except PeftcError:
        if not reconsidered(model):
            raise
        return _recorded(model, SCENARIOS[0], POINTS[0], alike)


def _seconds(model: nn.Module) -> Iterator[Point]:
    """The second example point, and others where a model of text reads more, or one of pictures larger ones."""
    reads, second = feed(model), POINTS[1]
    if reads.is_text:
        yield from (replace(second, length=second.length * n, source=second.source * n) for n in FURTHER)
    elif any(i.shape(second) != i.shape(replace(second, image=1)) for i in reads.inputs):
        yield from (replace(second, image=second.image * n) for n in LARGER)


def _differ(one: Recording | None, other: Recording | None) -> bool:
    """Whether everything that attends has read another shape, apart from the number of examples."""
    if one is None or other is None:
        return True
    calls = [(r.calls.get(m) for r in (one, other)) for m in one.attending]
    shapes = [[_shape(call) for call in pair if call is not None] for pair in calls]
    return not any(len(pair) == 2 and pair[0] == pair[1] for pair in shapes)


def _shape(call: Recorded) -> tuple[int, ...] | None:
    """The first tensor's, without its first axis."""
    return next((tuple(t.shape[1:]) for t in tensors_in(list(call.named.values()))), None)


def classes(model: nn.Module) -> dict[str, str]:
    """The name of every module's class."""
    return {path: type(module).__name__ for path, module in model.named_modules()}
