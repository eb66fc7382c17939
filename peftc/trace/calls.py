"""The calls that a model really makes to its modules, recorded on the meta device at two example points."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import AttentionInterface

from peftc.trace.inputs import Point, Scenario, inputs
from peftc.trace.probes import SDPA, patched, shapes_only
from peftc.trace.repeats import Twins


@dataclass(frozen=True)
class Recorded:
    """One call of a module: its parameters by name, and what arrived in **kwargs beside them."""

    named: Mapping[str, Any]
    extra: Mapping[str, Any]


@dataclass
class Recording:
    """What one run of the outer model showed: a call per module, and which modules attend."""

    calls: dict[nn.Module, Recorded] = field(default_factory=dict)
    attending: dict[nn.Module, None] = field(default_factory=dict)


def record(model: nn.Module, scenario: Scenario, point: Point, twins: Twins) -> Recording | None:
    """Run the model once as the scenario says; None where the model has no such scenario.

    A module whose twin has run in this call is not run again: it returns what its twin returned.
    """
    given = inputs(model, scenario, point, lambda: _recording(Recording(), twins))
    if given is None:
        return None
    recording = Recording()
    with torch.no_grad(), _recording(recording, twins):
        model(**given)
    return recording


@contextmanager
def _recording(recording: Recording, twins: Twins) -> Iterator[None]:
    call, stack = nn.Module.__call__, []
    returned: dict[nn.Module, Any] = {}

    def recorded(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        like = twins.get(module, module)
        if like is not module and like in returned:
            return returned[like]
        if module not in recording.calls and any(True for _ in module.children()):
            recording.calls[module] = bind(module, _snapshot(args), _snapshot(kwargs))
        stack.append(module)
        try:
            result = call(module, *args, **kwargs)
        finally:
            stack.pop()
        if module in twins:
            returned[module] = result
        return result

    def attends(*args: Any, **kwargs: Any) -> Any:
        recording.attending[stack[-1]] = None
        return SDPA(*args, **kwargs)

    def weighs(softmax: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            weights = softmax(*args, **kwargs)
            owner = next((m for m in reversed(stack) if any(True for _ in m.children())), None)
            if weights.dim() == 4 and owner is not None:
                recording.attending[owner] = None
            return weights

        return watched

    find = AttentionInterface.get_interface

    def looked_up(*args: Any, **kwargs: Any) -> Any:
        recording.attending[stack[-1]] = None
        return find(*args, **kwargs)

    with ExitStack() as patches:
        patches.enter_context(shapes_only())
        patches.enter_context(patched(nn.Module, "__call__", recorded))
        patches.enter_context(patched(nn.functional, "scaled_dot_product_attention", attends))
        patches.enter_context(patched(AttentionInterface, "get_interface", looked_up))
        for place in (nn.functional, torch, torch.Tensor):
            patches.enter_context(patched(place, "softmax", weighs(place.softmax)))
        yield


def _snapshot(value: Any) -> Any:
    """Caches as they are now: a later layer's update must not change what was recorded."""
    if isinstance(value, (tuple, list)):
        return type(value)(_snapshot(v) for v in value)
    if isinstance(value, dict):
        return {k: _snapshot(v) for k, v in value.items()}
    plain = (torch.Tensor, int, float, str, bool, type(None), nn.Module)
    return value if isinstance(value, plain) else copy.deepcopy(value)


def parameters(module: nn.Module) -> dict[str, inspect.Parameter]:
    """The parameters of a module's forward, self left out."""
    found = dict(inspect.signature(type(module).forward).parameters)
    found.pop(next(iter(found)))
    return found


def bind(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Recorded:
    """A call's values under the names that the module's forward gives them."""
    bound = inspect.signature(type(module).forward).bind(module, *args, **kwargs).arguments
    bound.pop(next(iter(bound)))
    extra: dict[str, Any] = {}
    for name, parameter in parameters(module).items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            extra = dict(bound.pop(name, {}))
    return Recorded(bound, extra)
