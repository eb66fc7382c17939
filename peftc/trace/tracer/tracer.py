"""The fx tracer: one forward, run on proxies that know their value at two example points."""

from __future__ import annotations

import inspect
import json
import operator
import sys
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence, Set
from typing import Any

import torch
from torch import fx, nn

from peftc.graph.branches import SelfReference, assume, attribute, enter, inputs, leave
from peftc.graph.sites import dotted
from peftc.trace.record.memo import Held, Remembered
from peftc.trace.record.nested import made_of
from peftc.trace.record.source import told
from peftc.trace.record.state import held, is_stacked, numbers_set, restored
from peftc.trace.tracer.constants import axis_read, constant, is_cut, is_none, sized
from peftc.trace.tracer.frames import caller, note_names, source_key, stored, tuples
from peftc.trace.tracer.in_place import check_views
from peftc.trace.tracer.keywords import asked, each_once, fitting, wanted
from peftc.trace.tracer.mutated import LOOKS, Live, State
from peftc.trace.tracer.none_sources import absent
from peftc.trace.tracer.values import (
    EXTRA,
    Answer,
    Argument,
    Known,
    Learnt,
    Point,
    TraceFailure,
    Value,
    evaluate,
    fail,
)

UNTRACEABLE = (TraceFailure, AssertionError, RuntimeError, TypeError, ValueError, AttributeError, LookupError)
LITERALS = (int, float, str, complex, type(None), type(...), torch.dtype, torch.device)


class Tracer(fx.proxy.TracerBase):
    """Traces one unit.  `leaves` are the modules that stay calls; everything else with children is inlined.

    The rest are keys of nodes.  Decisions and flags of `against` go the other way; values that `known` misses are None
    and no proxies; numbers of `varying` (or sizes: parameter, axis) stay nodes, though both examples agree.
    """

    def __init__(
        self, unit: nn.Module, leaves: frozenset[nn.Module], against: Iterable[Hashable] = (),
        remembered: Remembered | None = None, known: Known | None = None, varying: Set[Hashable] = frozenset(),
    ) -> None:  # fmt: skip
        self.graph = fx.Graph()
        self.unit, self.leaves, self.against, self.varying = unit, leaves, frozenset(against), varying
        self.remembered, self.known = remembered or Remembered(), known or Known()
        self.paths = {module: path for path, module in unit.named_modules()}
        self.kept: set[str] = set()
        self.limits: list[tuple[float, Value]] = []
        self.live = Live()
        self.paused = 0
        self.module_stack = OrderedDict()
        self.scope = fx.proxy.Scope("", None)
        self.node_name_to_scope = {}

    # -- running -------------------------------------------------------------------------------------------------

    def trace(self, arguments: Sequence[Argument]) -> fx.Graph:
        """The graph of the unit's forward on these arguments."""
        positional, keywords = [], {}
        for argument in arguments:
            value: Any = argument.default if argument.points is None else self._placeholder(argument)
            if argument.kind == "extra":
                keywords[EXTRA] = value
            elif argument.kind == "keyword":
                keywords[argument.name] = value
            else:
                positional.append(value)
        given = self.live.state()
        keywords |= self._read(keywords.get(EXTRA), asked(type(self.unit)))
        result = type(self.unit).forward(self.unit, *positional, **keywords)
        note_names(sys._getframe(), Tracer.trace.__code__)
        output = self.graph.output(self.create_arg(result))
        if any(map(is_cut, output.all_input_nodes)) and torch.is_grad_enabled():
            fail("it turns off the gradients of what it returns")
        if isinstance(result, tuple) and type(result) is not tuple and not isinstance(output.args[0], fx.Node):
            fail(f"it returns a {type(result).__name__}")
        output.meta.update(key=("output",), names=[])
        check_views(self.graph, self.live.changed)
        self.live.restore(given)
        return self.graph

    def _placeholder(self, argument: Argument) -> Value:
        node = self.graph.placeholder(argument.name)
        key = ("placeholder", argument.name)
        points = tuple(not point for point in argument.points or ()) if key in self.against else argument.points
        node.meta.update(value=points, key=key, scope=(), names=[argument.name])
        self.live.note(node)
        return Value(node, self)

    # -- nodes ---------------------------------------------------------------------------------------------------

    def create_arg(self, a: Any) -> Any:
        a = next((value for number, value in self.limits if number is a), a) if type(a) is float else a
        if type(a) is Value:
            return self.live.now(a.node)
        if isinstance(a, nn.Module):
            return SelfReference(self.paths[a]) if a in self.paths else fail(f"{type(a).__name__} is outside the unit")
        if any(type(part) is Value for part in made_of(a).values()):
            return self.create_proxy("call_function", type(a), (), made_of(a)).node
        if isinstance(a, (tuple, list)):
            return (list if isinstance(a, list) else tuple)(map(self.create_arg, a))
        if isinstance(a, dict):
            return {k: self.create_arg(v) for k, v in a.items()}
        if isinstance(a, slice):
            return slice(self.create_arg(a.start), self.create_arg(a.stop), self.create_arg(a.step))
        if callable(a):
            return getattr(a, "leaf_of", a)
        return a if isinstance(a, LITERALS) else fail(f"an argument of type {type(a).__name__}")

    def create_proxy(
        self, kind: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *rest: Any, **more: Any
    ) -> Any:
        frame = sys._getframe(1)
        lowered, keywords = self.create_arg(args), each_once(self.create_arg(kwargs))
        points = self._evaluate(kind, target, lowered, keywords)
        fixed, key = constant(target, lowered, points), source_key(kind, target, lowered, frame, Tracer.trace.__code__)
        if fixed is not None and not {key, axis_read(target, lowered)} & self.varying:
            return sized(fixed[0], target, lowered)
        node = self.graph.create_node(kind, target, lowered, keywords)
        own, grad = caller(frame), torch.is_grad_enabled()
        node.meta.update(value=points, key=key, names=[], grad=grad, instruction=(own.f_code, own.f_lasti))
        node.meta.update(absent=absent(own, keywords, self.paths), stored=stored(own), tuples=tuples(own, args))
        self.live.note(node)
        note_names(frame, Tracer.trace.__code__)
        return self._told(Value(node, self)) if node.meta["key"] in self.known.missing else Value(node, self)

    def _told(self, value: Value) -> Value | None:
        """The value behind a check that it is there; None behind a check that it is None."""
        given = not is_none(value.node)
        check = self.assume(self.create_proxy("call_function", operator.is_not, (value, None), {}), given)
        check.meta["key"] = (*check.meta["key"], value.node.meta["key"])  # one line may hold several
        return value if given else None

    def evaluate_quietly(self, function: Any, args: Any, kwargs: Any) -> Point:
        """What a function returns at the first point, with nothing recorded."""
        self.paused += 1
        try:
            return evaluate(self.unit, "call_function", function, self.create_arg(args), self.create_arg(kwargs), 0)
        finally:
            self.paused -= 1

    def _evaluate(self, kind: str, target: Any, args: Any, kwargs: Any) -> tuple[Point, Point]:
        held = self.live.held(args, kwargs)

        def compute(own: Held) -> tuple[Point, Point]:
            first, second = (evaluate(self.unit, kind, target, args, kwargs, point, own[point]) for point in (0, 1))
            return first, second

        self.paused += 1
        try:
            if held[0] and target in LOOKS:
                return compute(held)
            points, left = self.remembered.points(kind, target, args, kwargs, held, compute)
            self.live.left(left)
            return points
        except (AttributeError, TypeError) as error:
            keys = frozenset(node.meta["key"] for node in inputs((args, kwargs)) if is_none(node))
            raise (Learnt(Known(missing=keys), error) if keys else error) from error
        finally:
            self.paused -= 1

    def call_value(self, value: Value, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call of a proxy: a method of another proxy, or a function that was looked up at run time."""
        node = value.node
        if node.target is getattr and not node.users:
            subject, name = node.args
            assert isinstance(subject, fx.Node)
            self.graph.erase_node(node)
            return self.create_proxy("call_method", name, (Value(subject, self), *args), kwargs)
        return self.create_proxy("call_method", "__call__", (value, *args), kwargs)

    def call_module(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A leaf stays a call; anything else is inlined, between markers that let it be folded again."""
        if module not in self.paths and any(True for _ in module.parameters()):
            return fail(f"a call of a module outside the unit: {type(module).__name__}")
        if module not in self.paths:
            return type(module).forward(module, *args, **kwargs)
        path = self.paths[module]
        stays = module in self.leaves or path in self.known.calls
        if stays or not any(True for _ in module.children()) or is_stacked(module):
            return self.create_proxy("call_module", path, args, kwargs)
        return self._inlined(module, path, args, kwargs)

    def _inlined(self, module: nn.Module, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The module's own forward, between markers; a call after all where it cannot be traced."""
        mark, state = self.create_proxy("call_function", enter, (path, args, kwargs), {}), self.live.state()
        forward, before = type(module).forward, held(module)
        try:
            more = self._read(kwargs.get(EXTRA), wanted(forward, args, kwargs))
            result = forward(module, *args, **fitting(self, forward, kwargs, more) | more)
            if written := restored(module, before):
                fail(f"{path} sets {', '.join(written)}")
            if type(result) is Value and result.points[0] is None:
                fail(f"{path} returns what is not there")
            self.create_proxy("call_function", leave, (path, result), {})
        except Learnt:
            raise
        except UNTRACEABLE:
            restored(module, before)
            self._give_up(path, mark.node, state)
            return self.create_proxy("call_module", path, args, kwargs)
        return result

    def call_own(
        self, module: nn.Module, name: str, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """A method of one of the unit's modules, between markers: a call after all where it cannot be traced."""
        path = dotted(self.paths[module], name)
        if path in self.known.calls:
            return self._kept(module, name, args, kwargs)
        mark, state = self.create_proxy("call_function", enter, (path, args, kwargs), {}), self.live.state()
        try:
            result = function(module, *args, **kwargs)
        except Learnt:
            raise
        except UNTRACEABLE:
            self._give_up(path, mark.node, state)
            return self._kept(module, name, args, kwargs)
        if any(type(r) is Value for r in (result if isinstance(result, tuple) else (result,))):
            self.create_proxy("call_function", leave, (path, result), {})
        else:
            self.graph.erase_node(mark.node)
        return result

    def _kept(self, module: nn.Module, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call of a method; the numbers that it sets are those of the examples, or a check speaks."""
        before = held(module)
        result = self.create_proxy("call_method", name, (module, *args), kwargs)
        for owner, set_, value in numbers_set(module, before):
            source = attribute(self.paths[owner], set_)
            check = self.assume(f"{source} == {value!r}", True, f"inputs that make {source} other than {value!r}")
            check.meta["key"] = ("assume", source)
        return result

    def _give_up(self, path: str, mark: fx.Node, state: State) -> None:
        """What is at a path stays a call: forget its mark, all that came after it, and what that has changed."""
        self.kept.add(path)
        self.live.restore(state)
        for node in reversed(list(self.graph.nodes)):
            self.graph.erase_node(node)
            if node is mark:
                return

    def _read(self, extra: Any, names: Iterable[str]) -> dict[str, Any]:
        """What a forward takes out of the unit's **kwargs, as far as the call had it; a check for the rest."""
        found: dict[str, Any] = {}
        named = inspect.signature(type(self.unit).forward).parameters
        for name in (n for n in names if type(extra) is Value and n not in named):
            given = all(point.get(name) is not None for point in extra.points)
            condition = f"{extra.node.target}.get({json.dumps(name)}) is not None"
            check = self.assume(condition, given, f"calls {'without' if given else 'with'} {name}")
            check.meta["key"] = ("assume", condition)
            found |= {name: extra[name]} if given else {}
        return found

    # -- decisions -----------------------------------------------------------------------------------------------

    def decide(self, value: Value) -> bool:
        """The truth of a value: the same at both points, and recorded as a check.

        On a way that goes against some branch no example tells the truth of a tensor: there it is false at first.
        """
        for decided in (user for user in value.node.users if user.target is assume):
            return bool(decided.args[1])
        unknown = bool(self.against) and any(isinstance(p, torch.Tensor) and p.is_meta for p in value.points)
        outcomes = {False} if unknown else {bool(p) for p in value.points}
        if len(outcomes) > 1:
            fail(f"a branch on {told(value.node)} that depends on the input's shape")
        check = self.assume(value, outcomes.pop())
        check.meta["key"] = (*check.meta["key"], value.node.meta["key"])  # one line may hold several branches
        if check.meta["key"] in self.against:
            check.args = (check.args[0], not check.args[1], check.args[2])
        return bool(check.args[1])

    def assume(self, condition: Any, outcome: bool, kind: str = "such inputs") -> fx.Node:
        """Emit a check: the branch that was taken here holds for no other truth of this condition."""
        message = f"{type(self.unit).__name__} is not compiled for {kind}"
        check: Value = self.create_proxy("call_function", assume, (condition, outcome, message), {})
        return check.node

    def agreed(self, value: Value, answers: list[Answer]) -> Answer:
        if answers[0] != answers[1]:
            fail(f"{told(value.node)} is used as a constant, but changes with the input's shape")
        if type(value.points[0]) is int:
            self.decide(Value(self.create_proxy("call_function", operator.eq, (value, answers[0]), {}).node, self))
        return answers[0]
