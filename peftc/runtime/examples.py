"""Real inputs for one unit: the calls that its model makes at sizes that tracing has not seen."""

from __future__ import annotations

import copy
import operator
from collections.abc import Hashable, Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from transformers import PreTrainedConfig

from peftc.graph.sites import Trace
from peftc.trace.record.calls import Recorded, Recording, record, together
from peftc.trace.record.feeds import Point
from peftc.trace.record.inputs import SCENARIOS, Scenario
from peftc.trace.record.memo import signature
from peftc.trace.record.nested import keyed, rebuilt
from peftc.trace.record.observed import given_in
from peftc.trace.record.twins import Twins, of_a_kind, twins

UNSEEN = (Point(batch=1, length=5, past=3, source=8), Point(batch=4, length=9, past=7, source=6))


@dataclass(frozen=True, eq=False)
class Recordings:
    """What a model calls its modules with, per scenario and unseen size, still on the meta device."""

    found: Mapping[tuple[Scenario, Point], Recording]
    twins: Twins

    def calls(self, module: nn.Module, traced: fx.Graph) -> Iterator[tuple[str, Recorded]]:
        """A description and the call, for each recording that reaches the module, whose trace is given.

        What has no features is told by another size of the same scenario, or by the examples of the trace: a model
        may pad both sizes to the same length.
        """
        points = {str(n.target): n.meta["value"] for n in traced.nodes if n.op == "placeholder" and "value" in n.meta}
        flat = {name for name, (one, other) in points.items() if _is_per_position(one, other)}
        again = {str(n.args[0]) for n in traced.nodes if n.target is operator.is_}
        told, known = set[Hashable](), set[frozenset[str]]()
        for position, one in enumerate(of_a_kind(module, self.twins)):
            found = {pair: recording.calls[one] for pair, recording in self.found.items() if one in recording.calls}
            new = {pair: call for pair, call in found.items() if not position or given_in(call) not in known}
            known |= set(map(given_in, found.values()))
            for (scenario, point), call in new.items():
                if (same := (point, signature((call.named, call.extra)))) in told:
                    continue
                told.add(same)
                other = next((c for (s, p), c in found.items() if s == scenario and p != point), call)
                further = ", another of its kind" if position else ""
                yield f"{point.batch} x {point.length}, {scenario}{further}", _told(call, other, flat, again)


def _told(call: Recorded, other: Recorded, flat: Set[str], again: Set[str]) -> Recorded:
    """A call, marked where it has no features, as the same at another size tells, or `flat` does.

    `again` are the parameters of which the forward asks whether they are a tensor that it was given already.
    """
    named, extra = _marked(dict(call.named), dict(other.named)), _marked(dict(call.extra), dict(other.extra))
    named |= {n: PerPosition(t.shape) for n in flat if isinstance(t := named.get(n), torch.Tensor)}
    names = list(named)
    named |= {n: Again(t) for n in again if any((t := named.get(n)) is named[m] for m in names[: names.index(n)])}
    return Recorded(named, extra)


@dataclass(frozen=True)
class Again:
    """A tensor that was given under another name already: filled, it is the very same one."""

    tensor: torch.Tensor


@dataclass(frozen=True)
class PerPosition:
    """A tensor without features: one number for each position, such as a mask that is added or multiplied."""

    shape: torch.Size


def _marked(value: Any, other: Any) -> Any:
    """A call's values, marked where they have no features, as a call at another size tells."""
    if isinstance(value, (tuple, list)) and isinstance(other, (tuple, list)) and len(value) == len(other):
        return rebuilt(value, (_marked(one, two) for one, two in zip(value, other, strict=True)))
    if isinstance(value, dict) and isinstance(other, dict):
        return keyed(value, {key: _marked(item, other.get(key)) for key, item in value.items()})
    return PerPosition(value.shape) if _is_per_position(value, other) else value


def _is_per_position(value: Any, other: Any) -> bool:
    """Whether no axis of a float tensor is as long at another size, axes of one entry apart, and more than one is."""
    if not all(isinstance(v, torch.Tensor) and v.is_floating_point() for v in (value, other)):
        return False
    sizes = [pair for pair in zip(value.shape, other.shape, strict=False) if pair != (1, 1)]
    return len(sizes) > 1 and all(one != two for one, two in sizes)


def recordings(trace: Trace) -> Recordings:
    """Run a traced model on the meta device at every unseen size, and the models inside it that run by themselves."""
    able, alike = [scenario for scenario in SCENARIOS if str(scenario) not in trace.refused], twins(trace.model)
    pairs = [(scenario, point) for scenario in able for point in UNSEEN]
    models = [trace.model.get_submodule(path) for path in ("", *trace.submodels)]
    found = {pair: [r for model in models if (r := record(model, *pair, alike))] for pair in pairs}
    return Recordings({pair: together(runs) for pair, runs in found.items() if runs}, alike)


class Filler:
    """Meta tensors as real ones: random numbers, masks that hide some keys, zeros for indices.

    Numbers for positions are 0 and 1: a mask, whether added or multiplied.  `added`: bool masks were recorded under
    another attention than the one that runs, whose masks are added.  Integers of more than two axes are a mask too.
    One number for each example is a flag or an index, whatever its dtype: 0 or 1.
    """

    def __init__(self, seed: int, dtype: torch.dtype, added: bool) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.dtype, self.added = dtype, added
        self.objects: dict[int, Any] = {}

    def __call__(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            self.objects[id(value)] = filled = self._tensor(value)
            return filled
        if isinstance(value, Again):
            return self.objects[id(value.tensor)]
        if isinstance(value, PerPosition):
            return self._seen(value.shape).to(self.dtype)
        if isinstance(value, (tuple, list)):
            return rebuilt(value, map(self, value))
        if isinstance(value, dict):
            return keyed(value, {key: self(item) for key, item in value.items()})
        if _keeps(value):
            return self._object(value)
        return self.dtype if value is torch.float32 else torch.device("cpu") if value == torch.device("meta") else value

    def _object(self, value: Any) -> Any:
        """A copy of a cache, or of an object that a model made to keep something: the same one wherever it is given."""
        if id(value) not in self.objects:
            self.objects[id(value)] = filled = copy.copy(value)
            vars(filled).update({key: self(item) for key, item in vars(value).items()})
        return self.objects[id(value)]

    def _tensor(self, value: torch.Tensor) -> torch.Tensor:
        if value.dtype == torch.bool:
            return self._mask(value)
        if value.is_complex():
            return torch.randn(value.shape, dtype=value.dtype, generator=self.generator)
        if not value.is_floating_point():
            seen = self._seen(value.shape) if value.dim() > 2 else torch.zeros(value.shape)
            return seen.to(value.dtype)
        if value.dim() == 1:
            return torch.randint(2, value.shape, generator=self.generator).to(self.dtype)
        return torch.randn(value.shape, generator=self.generator).to(self.dtype)

    def _mask(self, value: torch.Tensor) -> torch.Tensor:
        """Some of each row true and some false: in some models true is what is seen, in others what is not."""
        seen = self._seen(value.shape)
        if value.dim() > 1 and value.shape[-1] > 1:
            seen[..., -1] = False
        if not self.added:
            return seen
        return torch.zeros(value.shape, dtype=self.dtype).masked_fill(~seen, torch.finfo(self.dtype).min)

    def _seen(self, shape: torch.Size) -> torch.Tensor:
        seen = torch.rand(shape, generator=self.generator) < 0.7
        seen[..., 0] = True
        return seen


def _keeps(value: Any) -> bool:
    """Whether a value is an object that keeps others as attributes, as a cache does: its tensors are filled in a copy.

    Functions, types, modules, configs, and objects of torch are given as they are.
    """
    if isinstance(value, (type, nn.Module, PreTrainedConfig)):
        return False
    foreign = type(value).__module__.partition(".")[0] in ("builtins", "torch", "functools")
    return not foreign and getattr(value, "__dict__", None) is not None


def real_module(module: nn.Module) -> nn.Module:
    """A copy of a meta module on the CPU, its parameters drawn from a generator of their own, its buffers one or zero.

    Buffers are masks, frequencies and variances: most random numbers are none of these.
    """
    real = copy.deepcopy(module).to_empty(device="cpu").float()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in real.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
        for buffer in real.buffers():
            buffer.fill_(1 if buffer.is_floating_point() or buffer.dtype == torch.bool else 0)
    return real
