"""Python's own functions on proxies: isinstance sees through them; a length, or the least of sizes, is a size."""

from __future__ import annotations

import builtins
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from peftc.trace.record.nested import is_plain
from peftc.trace.tracer.constants import EXTREMES
from peftc.trace.tracer.tracer import Tracer
from peftc.trace.tracer.values import Value


def on_proxies(tracer: Tracer) -> Mapping[str, Callable[..., Any]]:
    """name -> what stands for the function of that name while a model's own code is traced."""
    return {
        "isinstance": _isinstance(tracer),
        "len": _length(tracer),
        **{f.__name__: _extreme(tracer, f) for f in EXTREMES},
    }


def _isinstance(tracer: Tracer) -> Callable[..., bool]:
    def check(value: Any, kinds: Any) -> bool:
        if type(value) is Value and not tracer.paused:
            return _typed(tracer, value, kinds)
        return builtins.isinstance(value, kinds)

    return check


def _typed(tracer: Tracer, value: Value, kinds: Any) -> bool:
    """Whether a value is of a type, with a check of an argument's, and of a number's that was asked of one.

    A cache may count in a tensor: against the decision, the number is in one.
    """
    outcome, counted = isinstance(value, kinds), type(value.points[0]) is int
    argument = value.node.op == "placeholder" and not is_plain(value.points[0])
    if not (argument or (value.node.op == "call_method" and counted)):
        return outcome
    check = tracer.assume(tracer.create_proxy("call_function", builtins.isinstance, (value, kinds), {}), outcome)
    if check.meta["key"] in tracer.against:
        value.node.meta["value"] = tuple(map(torch.tensor, value.points))
        check.args = (check.args[0], not outcome, check.args[2])
    return bool(check.args[1])


def _length(tracer: Tracer) -> Callable[..., Any]:
    """The size of a tensor's first axis as one node; how many there are in anything else."""

    def traced(value: Any) -> Any:
        if tracer.paused or type(value) is not Value or not isinstance(value.points[0], torch.Tensor):
            return len(value)
        return tracer.create_proxy("call_function", len, (value,), {})

    return traced


def _extreme(tracer: Tracer, function: Callable[..., Any]) -> Callable[..., Any]:
    """The least or the largest of numbers as one node: no branch decides which it is."""

    @functools.wraps(function)
    def traced(*args: Any, **kwargs: Any) -> Any:
        given = list(flat(args))
        if tracer.paused or kwargs or not any(type(a) is Value for a in given) or not all(map(_counts, given)):
            return function(*args, **kwargs)
        return tracer.create_proxy("call_function", function, args, {})

    return traced


def _counts(value: Any) -> bool:
    """Whether a value is a number, or a tuple of numbers."""
    example = value.points[0] if type(value) is Value else value
    items = example if builtins.isinstance(example, (tuple, list)) else (example,)
    return all(builtins.isinstance(item, (int, float)) for item in items)


def flat(value: Any) -> Iterator[Any]:
    """What stands in tuples, lists and dicts, whatever their depth."""
    if type(value) is Value:
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from flat(item)
    elif isinstance(value, dict):
        yield from flat(list(value.values()))
    else:
        yield value
