"""The fx tracer: one forward, run on proxies that know their value at two example points."""

from __future__ import annotations

import builtins
import copy
import operator
import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any

import torch
from torch import fx, nn
from torch.fx.node import map_aggregate

from peftc.graph.branches import SelfReference, assume, enter, leave

EXTRA = "**"  # the key under which the unit's own **kwargs travel through a call
LITERALS = (int, float, str, complex, type(None), type(...), torch.dtype, torch.device)
Point = Any


class TraceFailure(Exception):
    """A forward that cannot be traced, and why."""


@dataclass(frozen=True)
class Argument:
    """A parameter of the traced forward: its name, its default's source text, and its value at both points.

    `points` is None where the parameter is the constant None (an argument that this scenario leaves out).
    """

    name: str
    default: str | None
    points: tuple[Point, Point] | None
    kind: str = "plain"


class Value(fx.Proxy):
    """A proxy that answers isinstance, len, iteration, unpacking and bool from its values at the two points."""

    tracer: Tracer

    @property
    def points(self) -> tuple[Point, Point]:
        return self.node.meta["value"]  # type: ignore[no-any-return]

    @property
    def __class__(self) -> type:  # type: ignore[override]
        return type(object.__getattribute__(self, "node").meta["value"][0])

    def __len__(self) -> int:
        return self.tracer.agreed(self, [len(p) for p in self.points])

    def __iter__(self) -> Iterator[Any]:
        count = self.tracer.agreed(self, [len(p) for p in self.points])
        return iter([self[i] for i in range(count)])

    def __bool__(self) -> bool:
        return self.tracer.decide(self)

    def __index__(self) -> int:
        return self.tracer.agreed(self, list(self.points))

    def __int__(self) -> int:
        return self.tracer.agreed(self, list(self.points))

    def __float__(self) -> float:
        return float(self.tracer.agreed(self, list(self.points)))

    def __getattr__(self, name: str) -> Any:
        return self.tracer.create_proxy("call_function", getattr, (self, name), {})

    def __setitem__(self, key: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, key, value), {})

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.tracer.call_value(self, args, kwargs)

    def __hash__(self) -> int:
        return id(self.node)


class Tracer(fx.proxy.TracerBase):
    """Traces one unit.  `leaves` are the modules that stay calls; everything else with children is inlined."""

    def __init__(self, unit: nn.Module, leaves: frozenset[nn.Module]) -> None:
        self.graph = fx.Graph()
        self.unit, self.leaves = unit, leaves
        self.paths = {module: path for path, module in unit.named_modules()}
        self.paused = 0
        self.module_stack = OrderedDict()
        self.scope = fx.proxy.Scope("", None)
        self.node_name_to_scope = {}

    # -- running -------------------------------------------------------------------------------------------------

    def trace(self, arguments: Sequence[Argument]) -> fx.Graph:
        """The graph of the unit's forward on these arguments."""
        positional, keywords = [], {}
        for argument in arguments:
            value: Any = None
            if argument.points is not None:
                value = self._placeholder(argument)
            if argument.kind == "extra":
                keywords[EXTRA] = value
            elif argument.kind == "keyword":
                keywords[argument.name] = value
            else:
                positional.append(value)
        result = type(self.unit).forward(self.unit, *positional, **keywords)
        self._note_names(sys._getframe(), result)
        output = self.graph.output(self.create_arg(result))
        output.meta.update(key=("output",), names=[])
        return self.graph

    def _placeholder(self, argument: Argument) -> Value:
        node = self.graph.placeholder(argument.name)
        node.meta.update(value=argument.points, default=argument.default, key=("placeholder", argument.name), scope=())
        node.meta["names"] = [argument.name]
        return Value(node, self)

    # -- nodes ---------------------------------------------------------------------------------------------------

    def create_arg(self, a: Any) -> Any:
        if type(a) is Value:
            return a.node
        if isinstance(a, nn.Module):
            return SelfReference(self.paths[a]) if a in self.paths else _fail(f"{type(a).__name__} is outside the unit")
        if isinstance(a, (tuple, list)):
            items = [self.create_arg(x) for x in a]
            return items if isinstance(a, list) else tuple(items)
        if isinstance(a, dict):
            return {k: self.create_arg(v) for k, v in a.items()}
        if isinstance(a, slice):
            return slice(self.create_arg(a.start), self.create_arg(a.stop), self.create_arg(a.step))
        if callable(a):
            return getattr(a, "leaf_of", a)
        if isinstance(a, LITERALS):
            return a
        return _fail(f"an argument of type {type(a).__name__}")

    def create_proxy(
        self, kind: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *rest: Any, **more: Any
    ) -> Any:
        frame = sys._getframe(1)
        lowered, keywords = self.create_arg(args), self.create_arg(kwargs)
        points = self._evaluate(kind, target, lowered, keywords)
        if (constant := _constant(target, points)) is not None:
            return constant[0]
        node = self.graph.create_node(kind, target, lowered, keywords)
        node.meta.update(value=points, key=self._key(kind, target, frame), names=[])
        self._note_names(frame, None)
        return Value(node, self)

    def evaluate_quietly(self, function: Any, args: Any, kwargs: Any) -> Point:
        """What a function returns at the first point, with nothing recorded."""
        self.paused += 1
        try:
            return self._at(0, "call_function", function, self.create_arg(args), self.create_arg(kwargs))
        finally:
            self.paused -= 1

    def _evaluate(self, kind: str, target: Any, args: Any, kwargs: Any) -> tuple[Point, Point]:
        self.paused += 1
        try:
            return self._at(0, kind, target, args, kwargs), self._at(1, kind, target, args, kwargs)
        finally:
            self.paused -= 1

    def _at(self, index: int, kind: str, target: Any, args: Any, kwargs: Any) -> Point:
        def concrete(a: Any) -> Any:
            if isinstance(a, fx.Node):
                value = a.meta["value"][index]
                return value if _is_plain(value) else copy.deepcopy(value)
            if isinstance(a, SelfReference):
                return self.unit.get_submodule(a.path)
            return _plain(a)

        values = tuple(concrete_all(x, concrete) for x in args)
        named = {k: concrete_all(v, concrete) for k, v in kwargs.items()}
        named.update(named.pop(EXTRA, {}))
        with torch.no_grad():
            if kind == "call_module":
                return self.unit.get_submodule(target)(*values, **named)
            if kind == "get_attr":
                return _attribute(self.unit, target)
            if kind == "call_method":
                if target == "__call__":
                    return values[0](*values[1:], **named)
                return getattr(values[0], target)(*values[1:], **named)
            return None if target is assume else target(*values, **named)

    def call_value(self, value: Value, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call of a proxy: a method of another proxy, or a function that was looked up at run time."""
        node = value.node
        if node.target is getattr and not node.users:
            subject, name = node.args
            self.graph.erase_node(node)
            return self.create_proxy("call_method", name, (Value(subject, self), *args), kwargs)
        return self.create_proxy("call_method", "__call__", (value, *args), kwargs)

    def call_module(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A leaf stays a call; anything else is inlined, between markers that let it be folded again."""
        if module not in self.paths:
            return _fail(f"a call of a module outside the unit: {type(module).__name__}")
        path = self.paths[module]
        if module in self.leaves or not any(True for _ in module.children()):
            return self.create_proxy("call_module", path, args, kwargs)
        self.create_proxy("call_function", enter, (path, args, kwargs), {})
        result = type(module).forward(module, *args, **kwargs)
        self.create_proxy("call_function", leave, (path, result), {})
        return result

    # -- decisions -----------------------------------------------------------------------------------------------

    def decide(self, value: Value) -> bool:
        """The truth of a value: the same at both points, and recorded as an assumption."""
        outcomes = {bool(p) for p in value.points}
        if len(outcomes) > 1:
            _fail(f"a branch on {value.node} that depends on the input's shape")
        outcome = outcomes.pop()
        self.assume(value, outcome)
        return outcome

    def assume(self, condition: Any, outcome: bool) -> None:
        """Emit a check: the branch that was taken here holds for no other truth of this condition."""
        message = f"{type(self.unit).__name__} was compiled for another kind of input: compile it again for this one"
        self.create_proxy("call_function", assume, (condition, outcome, message), {})

    def typed(self, value: Value, kinds: Any, outcome: bool) -> None:
        """Emit a check of an argument's type, where it is no tensor and no number that the base itself makes."""
        if value.node.op == "placeholder" and not _is_plain(value.points[0]):
            self.assume(self.create_proxy("call_function", builtins.isinstance, (value, kinds), {}), outcome)

    def agreed(self, value: Value, answers: list[Any]) -> Any:
        if answers[0] != answers[1]:
            _fail(f"{value.node} is used as a constant, but changes with the input's shape")
        return answers[0]

    # -- where a node came from ----------------------------------------------------------------------------------

    def _key(self, kind: str, target: Any, frame: FrameType) -> tuple[Any, ...]:
        where = tuple((code.co_qualname, position) for code, position in _user_frames(frame))
        return (kind, target if isinstance(target, str) else id(target), where)

    def _note_names(self, frame: FrameType, result: Any) -> None:
        """Remember which variables of the running forwards hold which proxies, outermost frame first."""
        walk: FrameType | None = frame
        while walk is not None and walk.f_code is not Tracer.trace.__code__:
            if _is_user(walk.f_code):
                for name, value in walk.f_locals.items():
                    if type(value) is Value:
                        _prepend(value.node.meta["names"], name)
            walk = walk.f_back


def concrete_all(value: Any, function: Any) -> Any:
    return map_aggregate(value, function)


def _prepend(names: list[str], name: str) -> None:
    if name not in names:
        names.append(name)


def _fail(reason: str) -> Any:
    raise TraceFailure(reason)


def _attribute(module: nn.Module, path: str) -> Any:
    for part in path.split("."):
        module = getattr(module, part)
    return module


def _plain(value: Any) -> Any:
    """A lifted scalar as the number it is."""
    for kind in (int, float, str):
        if isinstance(value, kind) and type(value) not in (kind, bool):
            return kind(value)
    return value


def _is_plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(_is_plain(v) for v in value)
    return isinstance(value, (torch.Tensor, int, float, str, bool, type(None), torch.dtype, torch.device))


def _constant(target: Any, points: tuple[Point, Point]) -> tuple[Any] | None:
    """The value of a node that no input can change, in a tuple; None where it must stay a node."""
    if target in (operator.setitem, enter, leave, assume) or type(points[0]) not in (int, float, str):
        return None
    return (points[0],) if points[0] == points[1] else None


def _is_user(code: CodeType) -> bool:
    return "/torch/" not in code.co_filename and "/peftc/" not in code.co_filename


def _user_frames(frame: FrameType | None) -> Iterator[tuple[CodeType, int]]:
    while frame is not None and frame.f_code is not Tracer.trace.__code__:
        if _is_user(frame.f_code):
            yield frame.f_code, frame.f_lasti
        frame = frame.f_back
