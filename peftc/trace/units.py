"""The units of a model: which modules' forwards are traced, under which scenarios, and one merged graph each."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import fx, nn

from peftc.graph.branches import assume
from peftc.trace.calls import Recorded, Recording, parameters, record
from peftc.trace.inputs import POINTS, SCENARIOS, Scenario
from peftc.trace.merge import merged
from peftc.trace.probes import tracing
from peftc.trace.repeats import Twins, twins
from peftc.trace.tracer import Tracer
from peftc.trace.values import Argument, TraceFailure

TRAINING = "self.training"


@dataclass(frozen=True, eq=False)
class Observed:
    """Every recording of a model: scenario -> one recording per example point; what was run for each module."""

    recordings: Mapping[Scenario, tuple[Recording, ...]]
    twins: Twins

    def calls(self, module: nn.Module) -> list[tuple[Recorded, ...]]:
        """The calls of one module, per scenario that reaches it, as one record per point."""
        run = self.twins.get(module, module)
        pairs = self.recordings.values()
        return [tuple(r.calls[run] for r in pair) for pair in pairs if all(run in r.calls for r in pair)]

    def pattern(self, module: nn.Module) -> tuple[tuple[str, ...], ...]:
        """Which parameters each scenario gives the module."""
        calls = self.calls(module)
        return tuple(tuple(p for p in parameters(module) if _given(c, p)) for c in calls)

    def attending(self, model: nn.Module) -> list[str]:
        """The paths of the modules that attend."""
        seen = {m for pair in self.recordings.values() for r in pair for m in r.attending}
        return [path for path, module in model.named_modules() if self.twins.get(module, module) in seen]


def observe(model: nn.Module) -> Observed:
    """Run the model on the meta device in every scenario that it has."""
    recordings, alike = {}, twins(model)
    for scenario in SCENARIOS:
        pair = tuple(record(model, scenario, point, alike) for point in POINTS)
        if all(pair):
            recordings[scenario] = tuple(r for r in pair if r is not None)
    return Observed(recordings, alike)


def layer_paths(model: nn.Module, observed: Observed) -> list[list[str]]:
    """The repeated blocks that attend, one list per tower: elements of the outermost module list around an attention."""
    towers: dict[str, dict[str, None]] = {}
    for path in observed.attending(model):
        parts = path.split(".")
        for end in range(1, len(parts) + 1):
            parent = model.get_submodule(".".join(parts[: end - 1]))
            if isinstance(parent, nn.ModuleList):
                towers.setdefault(".".join(parts[: end - 1]), {})[".".join(parts[:end])] = None
                break
    return [list(paths) for paths in towers.values()]


def trace_unit(module: nn.Module, leaves: frozenset[nn.Module], observed: Observed) -> fx.Graph:
    """One graph of a module's forward over every scenario seen, training and not."""
    calls = observed.calls(module)
    if not calls:
        raise TraceFailure(f"{type(module).__name__} is never called")
    optional = [p for p in parameters(module) if {_given(c, p) for c in calls} == {True, False}]
    conditions = (*(f"{name} is not None" for name in optional), TRAINING)

    def each(taken: tuple[bool, ...]) -> list[fx.Graph]:
        given = dict(zip(optional, taken[:-1], strict=True))
        fitting = _fitting(calls, given)
        return [_trace_once(module, leaves, _arguments(module, call, given), taken[-1]) for call in fitting]

    graph = merged(each, conditions)
    for name in _left_out(module, calls):
        if _matters(module, leaves, calls, name):
            _check_none(graph, name, type(module).__name__)
    return graph


def _left_out(module: nn.Module, calls: Sequence[tuple[Recorded, ...]]) -> list[str]:
    """The parameters that no call gave, which tracing took for None."""
    named = (n for n, p in parameters(module).items() if p.kind is not inspect.Parameter.VAR_KEYWORD)
    return [n for n in named if not any(_given(c, n) for c in calls)]


class _Anything:
    """Stands for an argument that was never seen: any use of it fails."""


def _matters(module: nn.Module, leaves: frozenset[nn.Module], calls: Sequence[tuple[Recorded, ...]], name: str) -> bool:
    """Whether the forward would do something else if this parameter were given."""
    seen = _arguments(module, calls[0], {})
    given = [replace(a, points=(_Anything(), _Anything())) if a.name == name else a for a in seen]
    plain = _trace_once(module, leaves, seen, training=False)
    try:
        other = _trace_once(module, leaves, given, training=False)
    except (TraceFailure, AttributeError, TypeError, ValueError, RuntimeError):
        return True
    keys = [[n.meta["key"] for n in g.nodes if n.target != name] for g in (plain, other)]
    return keys[0] != keys[1] or any(n.users for n in other.nodes if n.op == "placeholder" and n.target == name)


def _check_none(graph: fx.Graph, name: str, unit: str) -> None:
    message = f"{unit} was compiled for {name}=None: compile it again for a base that is given one"
    last = [n for n in graph.nodes if n.op == "placeholder"][-1]
    with graph.inserting_after(last):
        node = graph.call_function(assume, (f"{name} is not None", False, message))
    node.meta.update(key=("assume", name), names=[], scope=(), guard=(), value=(None, None))


def _given(call: tuple[Recorded, ...], name: str) -> bool:
    return all(r.named.get(name) is not None for r in call)


def _fitting(calls: Sequence[tuple[Recorded, ...]], given: Mapping[str, bool]) -> list[tuple[Recorded, ...]]:
    """The recorded calls that have what is to be given, those with the least beside it."""
    wanted = [c for c in calls if all(_given(c, name) for name, present in given.items() if present)] or list(calls)
    least = min(sum(_given(c, name) for name in given) for c in wanted)
    return [c for c in wanted if sum(_given(c, name) for name in given) == least]


def _arguments(module: nn.Module, call: tuple[Recorded, ...], given: Mapping[str, bool]) -> list[Argument]:
    """The arguments of one scenario, from a recorded call."""
    found = []
    for name, parameter in parameters(module).items():
        default = None if parameter.default is inspect.Parameter.empty else repr(parameter.default)
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            found.append(Argument(name, None, (dict(call[0].extra), dict(call[-1].extra)), "extra"))
        elif not given.get(name, True) or not _given(call, name):
            found.append(Argument(name, default, None, _kind(parameter)))
        else:
            found.append(Argument(name, default, (call[0].named[name], call[-1].named[name]), _kind(parameter)))
    return found


def _kind(parameter: inspect.Parameter) -> str:
    return "keyword" if parameter.kind is inspect.Parameter.KEYWORD_ONLY else "plain"


def _trace_once(module: nn.Module, leaves: frozenset[nn.Module], arguments: list[Argument], training: bool) -> fx.Graph:
    tracer = Tracer(module, leaves)
    before = [(m, m.training) for m in module.modules()]
    module.train(training)
    try:
        with tracing(tracer), torch.device("meta"):
            return tracer.trace(arguments)
    finally:
        for m, mode in before:
            m.training = mode
