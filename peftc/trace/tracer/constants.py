"""Which values of a trace no input can change, so that they need no node."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import fx

from peftc.graph.branches import Size, assume, enter, inputs, leave
from peftc.trace.record.nested import is_plain, tensors_in
from peftc.trace.tracer.values import Point

LIMITS = (torch.finfo, torch.iinfo)
ARITHMETIC = (operator.add.__module__, math.__name__)
EXTREMES = (max, min)


def constant(target: Any, args: tuple[Any, ...], points: tuple[Point, Point]) -> tuple[Any] | None:
    """The value of a node that no input can change, in a tuple; None where it must stay a node."""
    if target in (operator.eq, operator.ne) and "meta" in args and any(map(kind_of_device, args)):
        return (target is operator.ne,)  # what is traced there runs elsewhere
    if target in (operator.setitem, enter, leave, assume) or type(points[0]) not in (int, float, str):
        return None
    if target is getattr and _is_device(args[0]):
        return None  # all are on meta here
    if _of_dtype(target, args) or _counted(target, args) or _computed(target, args):
        return None
    return (points[0],) if points[0] == points[1] else None


def kind_of_device(value: object) -> bool:
    """Whether a value is the type of the device that a tensor is on."""
    return (
        isinstance(value, fx.Node) and value.target is getattr and value.args[1] == "type" and _is_device(value.args[0])
    )


def _is_device(value: object) -> bool:
    return isinstance(value, fx.Node) and isinstance(value.meta["value"][0], torch.device)


def _of_dtype(target: Any, args: tuple[Any, ...]) -> bool:
    """Whether a number depends on a dtype: both examples have the same one, but others may not."""
    if target is getattr and isinstance(args[0].meta["value"][0], LIMITS):
        return True
    return any(isinstance(a, fx.Node) and type(a.meta["value"][0]) is float for a in args)


def _counted(target: Any, args: tuple[Any, ...]) -> bool:
    """Whether a number is what a cache says of itself: zero perhaps, until it holds more than in any example."""
    source = args[0] if args and isinstance(args[0], fx.Node) else None
    if target is operator.getitem and source is not None and source.op == "call_method":
        return _counted(source.target, source.args)
    return isinstance(target, str) and source is not None and not is_plain(source.meta["value"][0])


def _computed(target: Any, args: tuple[Any, ...]) -> bool:
    """Whether a number is made of sizes that vary: that both examples leave the same over says nothing of others."""
    counts = getattr(target, "__module__", "") in ARITHMETIC and target is not operator.getitem
    return (counts or target in EXTREMES) and any(map(_varies, inputs(args)))


def _varies(node: fx.Node) -> bool:
    return type(node.meta["value"][0]) is int


def sized(value: Any, target: Any, args: tuple[Any, ...]) -> Any:
    """A constant; where it is one item of a tensor's shape, with what it was read from."""
    source = args[0] if len(args) == 2 and isinstance(args[0], fx.Node) and type(args[1]) is int else None
    if source is None or type(value) is not int or target not in (operator.getitem, "size"):
        return value
    size, whole = Size(value), target is operator.getitem
    seen = source.args[0] if whole and (source.target == "size" or source.args[1:] == ("shape",)) else None
    size.read_from = tuple((node.meta["key"], args[1]) for node in (source, seen) if isinstance(node, fx.Node))
    return size


def axis_read(target: Any, args: tuple[Any, ...]) -> tuple[str, int] | None:
    """The parameter and the axis of it whose size a node reads."""
    shape = args[0] if target is operator.getitem and isinstance(args[0], fx.Node) else None
    if shape is None or shape.target is not getattr or shape.args[1] != "shape" or not isinstance(args[1], int):
        return None
    source = shape.args[0]
    if not isinstance(source, fx.Node) or source.op != "placeholder":
        return None
    return str(source.target), args[1] % len(shape.meta["value"][0])


def is_none(node: fx.Node) -> bool:
    """Whether a node gives None at both points."""
    return all(point is None for point in node.meta["value"])


def is_cut(node: fx.Node) -> bool:
    """Whether a node computes floats without gradients; indices have none anyway."""
    floats = any(tensor.is_floating_point() for tensor in tensors_in(node.meta["value"]))
    return floats and node.meta.get("grad", True) is False
