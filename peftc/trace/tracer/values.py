"""What flows through a trace: proxies that know their value at two example points."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Hashable, Iterator, Mapping, MappingView
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeVar

import torch
from torch import fx, nn
from torch.fx.node import map_aggregate

from peftc.graph.branches import SelfReference, assume, enter, leave
from peftc.trace.record.meta import values_as
from peftc.trace.record.nested import is_plain
from peftc.trace.record.source import told
from peftc.trace.tracer.dtypes import widens

if TYPE_CHECKING:
    from peftc.trace.tracer.mutated import Live

EXTRA = "**"  # the key under which the unit's own **kwargs travel through a call
Point = Any
Answer = TypeVar("Answer")
EMPTY: Mapping[fx.Node, Any] = MappingProxyType({})
FINFO = torch.finfo  # another function stands for it while a unit is traced


class TraceFailure(Exception):
    """A forward that cannot be traced, and why."""


@dataclass(frozen=True)
class Known:
    """What all traces of a unit have to know: modules and methods that stay calls, by path; values that are None."""

    calls: frozenset[str] = frozenset()
    missing: frozenset[Hashable] = frozenset()

    def with_(self, other: Known) -> Known:
        return Known(self.calls | other.calls, self.missing | other.missing)


class Learnt(TraceFailure):
    """What one trace showed, and why the others have to know: a merged graph has it everywhere or nowhere."""

    def __init__(self, known: Known, why: object) -> None:
        super().__init__(str(why))
        self.known = known


@dataclass(frozen=True)
class Argument:
    """A parameter of the traced forward: its name, and its value at both points.

    `points` is None where this scenario leaves it out: then it is the constant `default`.
    """

    name: str
    default: object
    points: tuple[Point, Point] | None
    kind: str = "plain"


class Value(fx.Proxy):
    """A proxy that answers isinstance, len, iteration, unpacking and bool from its values at the two points."""

    tracer: Deciding  # type: ignore[assignment]

    @property
    def points(self) -> tuple[Point, Point]:
        points: tuple[Point, Point] = self.node.meta["value"]
        return points

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(object.__getattribute__(self, "node").meta["value"][0])

    def __repr__(self) -> str:
        return told(self.node)

    def __len__(self) -> int:
        return self.tracer.agreed(self, [len(p) for p in self.points])

    def __iter__(self) -> Iterator[Any]:
        if isinstance(self.points[0], Mapping | MappingView):
            fail(f"it goes through the keys of {self!r}, which may be others in another call")
        return iter([self[i] for i in range(len(self))])

    def __bool__(self) -> bool:
        return self.tracer.decide(self)

    def __index__(self) -> int:
        return int(self.tracer.agreed(self, list(self.points)))

    def __float__(self) -> float:
        """The number that both examples have; one that a dtype gives stands for what gives it, wherever it goes."""
        number = float(self.tracer.agreed(self, list(self.points)))
        source = self.node.args[0] if self.node.target is getattr else None
        if isinstance(source, fx.Node) and isinstance(source.meta["value"][0], FINFO):
            self.tracer.limits.append((number, self))
        return number

    def __getattr__(self, name: str) -> Any:
        return self.tracer.create_proxy("call_function", getattr, (self, name), {})

    @property
    def keys(self) -> Any:
        """The attribute of that name, as a cache's layer has: fx gives it another meaning."""
        return self.__getattr__("keys")

    def __getitem__(self, key: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.getitem, (self, key), {})

    def __setitem__(self, key: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})

    def apart(self, made: Any) -> Any:
        """x += y as x + y: the sum may lie otherwise in memory, and kernels then round otherwise: its node says so.

        It keeps the dtype of x.  Every name of x has the sum from here on.
        """
        if type(made) is Value and isinstance(point := self.points[0], torch.Tensor):
            floats, asked = point.is_floating_point(), partial(widens, made.node, self.node)
            made = made.to(self.dtype) if floats and self.tracer.evaluate_quietly(asked, (), {}) else made
            made.node.meta["in_place"] = floats
            self.tracer.live.change(self.node, made.node)
        return made

    def __setattr__(self, name: str, value: Any) -> None:
        if "node" in vars(self):  # its own two attributes come first
            fail(f"it sets the attribute {name} of {self!r}")
        super().__setattr__(name, value)

    def __enter__(self) -> NoReturn:
        fail(f"it enters {self!r}, which a trace does not record")

    def __exit__(self, *error: object) -> None:
        """Never reached; without it Python itself refuses to enter, and names no reason."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.tracer.call_value(self, args, kwargs)

    def __hash__(self) -> int:
        return id(self.node)


def _in_place(operation: Callable[[Any, Any], Any]) -> Callable[[Value, Any], Any]:
    return lambda value, other: value.apart(operation(value, other))


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor"):
    setattr(Value, f"__i{_name}__", _in_place(getattr(operator, f"__{_name}__")))


class Deciding(Protocol):
    """What a value asks of its tracer."""

    limits: list[tuple[float, Value]]
    live: Live

    def create_proxy(self, kind: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any: ...

    def evaluate_quietly(self, function: Any, args: Any, kwargs: Any) -> Point: ...

    def call_value(self, value: Value, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any: ...

    def decide(self, value: Value) -> bool: ...

    def agreed(self, value: Value, answers: list[Answer]) -> Answer: ...

    def assume(self, condition: Any, outcome: bool, kind: str) -> fx.Node: ...


def fail(reason: str) -> NoReturn:
    raise TraceFailure(reason)


def named(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of a call that it names itself, without the unit's own **kwargs."""
    return {name: value for name, value in keywords.items() if name != EXTRA}


def evaluate(
    unit: nn.Module, kind: str, target: Any, args: Any, kwargs: Any, point: int, held: Mapping[fx.Node, Any] = EMPTY
) -> Point:
    """What a node computes at one of the two points: on copies of what it may change, but for those `held`."""

    def concrete(a: Any) -> Any:
        if isinstance(a, fx.Node):
            value = held.get(a, a.meta["value"][point])
            return value if a in held or is_plain(value) else copy.deepcopy(value)
        return unit.get_submodule(a.path) if isinstance(a, SelfReference) else _number(a)

    values = tuple(map_aggregate(x, concrete) for x in args)
    named: dict[str, Any] = {k: map_aggregate(v, concrete) for k, v in kwargs.items()}
    named.update(named.pop(EXTRA, {}))
    with torch.no_grad():
        return _apply(unit, kind, target, values, named)


def _apply(unit: nn.Module, kind: str, target: Any, values: tuple[Any, ...], named: dict[str, Any]) -> Point:
    if kind == "call_module":
        return _called(unit.get_submodule(target), values, named)
    if kind == "get_attr":
        owner, _, name = target.rpartition(".")
        return getattr(unit.get_submodule(owner), name)
    if kind == "call_method":
        method = values[0] if target == "__call__" else getattr(values[0], target)
        with values_as(0) if isinstance(values[0], nn.Module) else nullcontext():
            return method(*values[1:], **named)
    return None if target in (assume, enter, leave) else target(*values, **named)


def _called(module: nn.Module, values: tuple[Any, ...], named: dict[str, Any]) -> Point:
    """What a module computes; what it asserts of values that are not there holds."""
    try:
        with values_as(0):
            return module(*values, **named)
    except AssertionError:
        with values_as(1):
            return module(*values, **named)


def _number(value: Any) -> Any:
    """A lifted scalar as the number it is."""
    for kind in (int, float, str):
        if isinstance(value, kind) and type(value) not in (kind, bool):
            return kind(value)
    return value
