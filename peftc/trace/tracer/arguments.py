"""What the recorded calls of a module give it, and in which sizes."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn

from peftc.trace.record.calls import Recorded
from peftc.trace.record.feeds import parameters
from peftc.trace.record.observed import Call
from peftc.trace.tracer.values import Argument, fail

Sizes = Mapping[str, tuple[bool, ...]]


def is_given(call: Call, name: str) -> bool:
    return all(r.named.get(name) is not None for r in call)


def without(call: Call, name: str) -> Call:
    """The call, with one parameter left out."""
    return tuple(replace(r, named={k: v for k, v in r.named.items() if k != name}) for r in call)


def having(call: Call, name: str, other: Call) -> Call:
    """The call, with one parameter as another call gives it."""
    pairs = zip(call, other, strict=True)
    return tuple(replace(own, named={**own.named, name: their.named[name]}) for own, their in pairs)


def default_of(parameter: inspect.Parameter) -> object:
    """What a parameter is when nobody gives it; None too where it has no default."""
    if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
        return ()
    return None if parameter.default is inspect.Parameter.empty else parameter.default


def sizes_of(call: Call) -> dict[str, tuple[bool, ...]]:
    """Which sizes of a given parameter's tensor vary: its length does not, where tokens come one at a time."""
    given = {name: (call[0].named[name], call[-1].named[name]) for name in call[0].named if is_given(call, name)}
    return {name: tuple(a != b for a, b in zip(*map(_shape, pair), strict=False)) for name, pair in given.items()}


def _shape(value: object) -> tuple[int, ...]:
    return tuple(value.shape) if isinstance(value, torch.Tensor) else ()


def varies_more(sizes: Sizes, than: Sizes) -> bool:
    """Whether a call gives all that another one gives, with more sizes that vary."""
    pairs = [(sizes[name], own) for name, own in than.items() if name in sizes]
    return len(pairs) == len(than) and any(
        not b and a for one, other in pairs for a, b in zip(one, other, strict=False)
    )


def gives_more(sizes: Sizes, than: Sizes, handed: frozenset[str]) -> bool:
    """Whether a call gives some of these parameters beside all that another one gives, in sizes of the same kind."""
    further = sizes.keys() - than.keys()
    return bool(further) and further <= handed and than.items() <= sizes.items()


def arguments_of(module: nn.Module, call: Call) -> list[Argument]:
    """The arguments of a recorded call."""
    found = []
    for name, parameter in parameters(module).items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            found.append(Argument(name, None, (dict(call[0].extra), dict(call[-1].extra)), "extra"))
        elif parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            if is_given(call, name):
                fail(f"it is given arguments without names, as *{name}")
        elif not is_given(call, name):
            found.append(Argument(name, default_of(parameter), None, _kind(parameter)))
        else:
            found.append(Argument(name, None, (call[0].named[name], call[-1].named[name]), _kind(parameter)))
    return found


def _kind(parameter: inspect.Parameter) -> str:
    return "keyword" if parameter.kind is inspect.Parameter.KEYWORD_ONLY else "plain"


def with_added_masks(call: Call) -> Call | None:
    """The call with its masks of booleans as floats, which a forward adds to the scores; None where it gives none."""
    given = [value for recorded in call for value in (*recorded.named.values(), *recorded.extra.values())]
    if all(_added(value) is value for value in given):
        return None
    return tuple(Recorded(*({n: _added(v) for n, v in held.items()} for held in (r.named, r.extra))) for r in call)


def _added(value: object) -> object:
    return value.float() if isinstance(value, torch.Tensor) and value.dtype == torch.bool else value
