"""The calls that a model really makes to its modules, recorded on the meta device at two example points."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_utils import AttentionInterface

from peftc.trace.record.caches import keeping, takes_use_cache
from peftc.trace.record.feeds import FAILURES, Point, feed, parameters, whole
from peftc.trace.record.inputs import Scenario, inputs
from peftc.trace.record.meta import (
    LARGEST,
    answered,
    noted,
    nothing_padded,
    numbers,
    patched,
    real_copy,
    shapes_only,
    values_as,
)
from peftc.trace.record.nested import keyed, rebuilt, tensors_in
from peftc.trace.record.numbers import numbered
from peftc.trace.record.state import unchanged
from peftc.trace.record.twins import Twins

SDPA = nn.functional.scaled_dot_product_attention
LOOK_UP = AttentionInterface.get_interface
REFUSALS = (AssertionError, NotImplementedError, ValueError)


@dataclass(frozen=True, eq=False)
class Recorded:
    """One call of a module: its parameters by name, and what arrived in **kwargs beside them."""

    named: Mapping[str, Any]
    extra: Mapping[str, Any]


@dataclass
class Recording:
    """What one run of the outer model showed: a call per module, which modules attend, and which may: they weigh.

    Of what weighs it says whether there are three axes, as many as batch and heads in one, queries and keys.
    """

    calls: dict[nn.Module, Recorded] = field(default_factory=dict)
    attending: dict[nn.Module, None] = field(default_factory=dict)
    weighing: dict[nn.Module, bool] = field(default_factory=dict)


def together(recordings: Iterable[Recording]) -> Recording:
    """What runs of several models showed, as one."""
    found = Recording()
    for recording in recordings:
        found.calls.update(recording.calls)
        found.attending.update(recording.attending)
        found.weighing.update(recording.weighing)
    return found


def record(
    model: nn.Module, scenario: Scenario, point: Point, twins: Twins,
    beside: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Recording | None:  # fmt: skip
    """Run the model once as the scenario says; None where the model has no such scenario, or refuses it.

    A model that fails on new ids alone is given those of its cache before them; what one asks of numbers before it goes
    on is so.  It runs in a block of `beside`.
    """
    try:
        return _run(model, scenario, point, twins, beside)
    except REFUSALS:
        if scenario.cache == "none":
            raise
        with suppress(*REFUSALS):
            return _run(model, scenario, point, twins, beside, number=1)
        return None
    except RuntimeError:
        if not scenario.continues or scenario.whole:
            raise
        with suppress(RuntimeError):
            return record(model, replace(scenario, whole=True), point, twins, beside)
        raise


def _run(
    model: nn.Module, scenario: Scenario, point: Point, twins: Twins,
    beside: Callable[[], AbstractContextManager[None]], number: int = 0,
) -> Recording | None:  # fmt: skip
    """One run; a module whose twin has run in it on the same shapes is not run again: it returns what that returned."""
    recording = Recording()
    feed(model)  # shows whether the model asks for numbers
    with torch.no_grad(), unchanged(model), numbered(model), keeping(model, scenario.cache != "none"):
        given = inputs(model, scenario, point, lambda: _watching(Recording(), twins, scenario.mask))
        if given is None:
            return None
        with _watching(recording, twins, scenario.mask, number), beside(), feed(model).beside(model):
            model(**given)
    told = scenario.cache == "none" or takes_use_cache(model)
    return recording if told or _caches(recording) else None


def _caches(recording: Recording) -> bool:
    """Whether a call was handed a cache, as not every model makes one whose config says so."""
    return any(isinstance(value, Cache) for call in recording.calls.values() for value in call.named.values())


def record_of_ones(
    model: nn.Module, scenario: Scenario, point: Point, twins: Twins, beside: Callable[[], AbstractContextManager[None]]
) -> Recording | None:
    """A run in which each number that is read out of a tensor is one, not zero; None where the model cannot do that."""
    try:
        return _run(model, scenario, point, twins, beside, number=1)
    except FAILURES:
        return None


def record_really(model: nn.Module, point: Point) -> Mapping[str, Recorded]:
    """Path -> the call of each module in one run of a copy that has numbers; nothing where that cannot be run."""
    if sum(p.numel() for p in model.parameters()) > LARGEST:
        return {}
    recording, real = Recording(), real_copy(model, numbers)
    try:
        with torch.no_grad(), _watching(recording, {}, padded=True):
            real(**whole(real, feed(model), point, mask=True))
    except FAILURES:
        return {}
    return {path: recording.calls[m] for path, m in real.named_modules() if m in recording.calls}


def _tell_hooks(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
    """Hooks see a call that is not run too: by them transformers takes hidden states, which a model may sum up."""
    for key, hook in module._forward_hooks.items():
        given = (args, kwargs) if key in module._forward_hooks_with_kwargs else (args,)
        hook(module, *given, result)


@contextmanager
def _watching(recording: Recording, twins: Twins, padded: bool, number: int = 0) -> Iterator[None]:
    """What a model that runs inside the block does goes into the recording."""
    call, stack = nn.Module.__call__, []
    returned: dict[Any, Any] = {}

    def recorded(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        like = twins.get(module, module)
        run = (like, *(t.shape for t in tensors_in((args, kwargs)))) if module in twins else None
        if like is not module and run in returned:
            _tell_hooks(module, args, kwargs, returned[run])
            return returned[run]
        if module not in recording.calls and _is_unit(module):
            made = dict[int, torch.Tensor]()
            recording.calls[module] = bind(module, _snapshot(args, made), _snapshot(kwargs, made))
        stack.append(module)
        try:
            result = answered(module, args, kwargs, call) if module in twins else call(module, *args, **kwargs)
        finally:
            stack.pop()
        if like is module and run is not None:
            returned[run] = result
        return result

    def attends(_: Any) -> None:
        recording.attending[stack[-1]] = None

    def weighs(weights: torch.Tensor) -> None:
        owner = next((m for m in reversed(stack) if any(True for _ in m.children())), None)
        if owner is not None and _has_heads(weights, owner):
            recording.attending[owner] = None
        elif owner is not None:
            recording.weighing[owner] = weights.dim() == 3

    with ExitStack() as patches:
        for context in (shapes_only(), values_as(number), nullcontext() if padded else nothing_padded()):
            patches.enter_context(context)
        patches.enter_context(patched(nn.Module, "__call__", recorded))
        patches.enter_context(patched(nn.functional, "scaled_dot_product_attention", noted(SDPA, attends)))
        patches.enter_context(patched(AttentionInterface, "get_interface", noted(LOOK_UP, attends)))
        for place in (nn.functional, torch, torch.Tensor):
            patches.enter_context(patched(place, "softmax", noted(place.softmax, weighs)))
        yield


def _has_heads(weights: torch.Tensor, owner: nn.Module) -> bool:
    """Whether weights show that their module attends: torch's own has batch and heads in one axis."""
    return weights.dim() >= 4 or isinstance(owner, nn.MultiheadAttention)


def _is_unit(module: nn.Module) -> bool:
    """Whether a module can be a unit: it has children, or a matrix of its own."""
    weight = getattr(module, "weight", None)
    own = [weight, *module.parameters(recurse=False)]
    return any(True for _ in module.children()) or any(isinstance(w, torch.Tensor) and w.dim() == 2 for w in own)


def _snapshot(value: Any, made: dict[int, torch.Tensor]) -> Any:
    """Tensors without their numbers, and caches as they are now: a later layer's update must not change them.

    What is one tensor stays one: `made` are those made so far, by the id of what they were.
    """
    if isinstance(value, torch.Tensor):
        return made.setdefault(id(value), value.to("meta"))
    if isinstance(value, (tuple, list)):
        return rebuilt(value, (_snapshot(v, made) for v in value))
    if isinstance(value, dict):
        return keyed(value, {k: _snapshot(v, made) for k, v in value.items()})
    if isinstance(value, (int, float, str, bool, type(None), nn.Module)):
        return value
    with patched(torch.Tensor, "__deepcopy__", lambda tensor, memo: tensor.to("meta")):
        return copy.deepcopy(value)


def bind(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Recorded:
    """A call's values under the names that the module's forward gives them."""
    bound = inspect.signature(type(module).forward).bind(module, *args, **kwargs).arguments
    bound.pop(next(iter(bound)))
    extra: dict[str, Any] = {}
    for name, parameter in parameters(module).items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            extra = dict(bound.pop(name, {}))
    return Recorded(bound, extra)
