"""A node as a Python expression."""

from __future__ import annotations

import inspect
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

import torch
from torch import fx, nn

from peftc.emit.literal import literal
from peftc.emit.tuples import packed
from peftc.graph.branches import (
    Lifted,
    LiftedStr,
    SelfReference,
    attribute,
    base_forward,
    choose,
    given,
    is_flag,
    lookup,
)  # fmt: skip
from peftc.graph.dataflow import example

BINARY: dict[Any, tuple[str, int]] = {
    operator.add: ("+", 5), operator.iadd: ("+", 5), operator.sub: ("-", 5), operator.mul: ("*", 6),
    operator.imul: ("*", 6), operator.truediv: ("/", 6), operator.floordiv: ("//", 6), operator.mod: ("%", 6),
    operator.matmul: ("@", 6), operator.pow: ("**", 8), operator.and_: ("&", 4), operator.or_: ("|", 2),
    operator.eq: ("==", 1), operator.ne: ("!=", 1), operator.lt: ("<", 1), operator.le: ("<=", 1),
    operator.gt: (">", 1), operator.ge: (">=", 1), operator.is_: ("is", 1), operator.is_not: ("is not", 1),
}  # fmt: skip
UNARY: dict[Any, tuple[str, int]] = {operator.neg: ("-", 7), operator.invert: ("~", 7), operator.not_: ("not ", 0)}
OPERATORS = (torch._ops.OpOverload, torch._ops.OpOverloadPacket)  # str() of one is its path below torch.ops
ATOM = 10
INTERFACE = "ALL_ATTENTION_FUNCTIONS"


@dataclass
class Globals:
    """The global names that a body uses: pasted functions, import lines, and aliases of the base's own modules."""

    aliases: Mapping[str, str]
    functions: set[str] = field(default_factory=set)
    imports: dict[str, str] = field(default_factory=dict)


class Printer:
    """Prints nodes: `name(node)` is the variable of a node that is not folded."""

    def __init__(self, name: Callable[[fx.Node], str | None], globals_: Globals) -> None:
        self.name, self.globals = name, globals_

    def value(self, value: Any, level: int = 0) -> str:
        """Any argument as an expression; `level` is the precedence that its surroundings need."""
        if isinstance(value, fx.Node):
            variable = self.name(value)
            return variable if variable is not None else self.node(value, level)
        if isinstance(value, SelfReference):
            return attribute(value.path)
        if isinstance(value, Lifted):
            self.globals.imports |= {"math": "import math"} if "math." in value.source else {}
            return value.within(level)
        if isinstance(value, LiftedStr):
            return value.source
        if isinstance(value, (tuple, list)):
            return self._sequence(value)
        if isinstance(value, dict):
            return "{" + ", ".join(f"{self.value(k)}: {self.value(v)}" for k, v in value.items()) + "}"
        if isinstance(value, slice):
            return f"slice({self.value(value.start)}, {self.value(value.stop)}, {self.value(value.step)})"
        if callable(value) and not isinstance(value, torch.dtype):
            return self.function(value)
        if isinstance(value, str):
            return literal(value)
        if isinstance(value, float):
            return literal(float(value))
        return "..." if value is ... else repr(value)

    def node(self, node: fx.Node, level: int = 0) -> str:
        text, own = self._node(node)
        return f"({text})" if own < level else text

    def _node(self, node: fx.Node) -> tuple[str, int]:
        if node.op == "placeholder":
            return str(node.target), ATOM
        if node.op == "get_attr":
            return attribute(str(node.target)), ATOM
        if node.op == "call_module":
            return attribute(str(node.target)) + self.call(node.args, given(node)), ATOM
        if node.op == "call_method":
            return self._method(node), ATOM
        return self._function(node)

    def _method(self, node: fx.Node) -> str:
        subject, *rest = node.args
        called = "" if node.target == "__call__" else f".{node.target}"
        return self.value(subject, ATOM) + called + self.call(rest, given(node))

    def _function(self, node: fx.Node) -> tuple[str, int]:
        target, args = node.target, node.args
        if target in BINARY and len(args) == 2:
            sign, level = BINARY[target]
            return f"{self.value(args[0], level)} {sign} {self.value(args[1], level + 1)}", level
        if target in UNARY:
            sign, level = UNARY[target]
            return sign + self.value(args[0], level), level
        if target is operator.getitem:
            return f"{self.value(args[0], ATOM)}[{self.index(args[1])}]", ATOM
        if target is getattr:
            return f"{self.value(args[0], ATOM)}.{args[1]}", ATOM
        if target is choose:
            condition = args[0] if isinstance(args[0], str) else self.value(args[0], 1)
            if is_flag(node):
                return condition, 0
            if args[1] is True and all(map(_is_bool, (args[0], args[2]))):
                return f"{condition} or {self.value(args[2], 1)}", 0
            return f"{self.value(args[1], 1)} if {condition} else {self.value(args[2], 1)}", 0
        if target is packed:
            return self.value(args[0]), ATOM
        if target is base_forward:
            return f"super().forward{self.call(args, node.kwargs)}", ATOM
        if target is lookup:
            self.globals.imports[INTERFACE] = f"from transformers.modeling_utils import {INTERFACE}"
            return f"{INTERFACE}.get_interface{self.call(args[:2], {})}", ATOM
        return self.function(target) + self.call(args, _without_defaults(target, given(node))), ATOM

    def call(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        parts = self._items(args)
        for name, value in kwargs.items():
            parts.append(f"**{self.value(value)}" if name == "**" else f"{name}={self.value(value)}")
        return f"({', '.join(parts)})"

    def _sequence(self, value: Sequence[Any]) -> str:
        items = self._items(value)
        if isinstance(value, list):
            return f"[{', '.join(items)}]"
        return f"({items[0]},)" if len(items) == 1 else f"({', '.join(items)})"

    def _items(self, values: Sequence[Any]) -> list[str]:
        """The items of a call or a sequence; a whole tuple taken apart in order is unpacked with a star."""
        items, rest = [], list(values)
        while rest:
            source, count = _unpacked(rest)
            if source is not None and all(self.name(n) is None for n in rest[:count]):
                items.append(f"*{self.value(source, ATOM)}")
            else:
                items.append(self.value(rest[0]))
                count = 1
            rest = rest[count:]
        return items

    def index(self, index: Any) -> str:
        """What stands between the brackets of an item."""
        if isinstance(index, tuple) and index:
            return ", ".join(self.index(i) for i in index) + ("," if len(index) == 1 else "")
        if isinstance(index, slice):
            parts = ["" if x is None else self.value(x) for x in (index.start, index.stop, index.step)]
            parts = parts if parts[2] else parts[:2]
            plain = all(re.fullmatch(r"-?\w*", part) for part in parts)
            return ":".join(parts) if plain else " : ".join(parts).strip()
        return self.value(index)

    def function(self, function: Any) -> str:
        """A function's global name, noting the import or the paste that it needs."""
        if isinstance(function, OPERATORS):
            return f"torch.ops.{function}"
        name = getattr(function, "__name__", "")
        module = getattr(function, "__module__", None) or ""
        if module.startswith("peftc.modules"):
            self.globals.functions.add(name)
            return name
        if getattr(nn.functional, name, None) is function and not isinstance(function, type):
            return f"nn.functional.{name}"
        if getattr(torch, name, None) is function:
            return f"torch.{name}"
        if module == "builtins":
            return str(name)
        if module == "math":
            self.globals.imports[module] = "import math"
            return f"math.{name}"
        if module in self.globals.aliases:
            return f"{self.globals.aliases[module]}.{name}"
        self.globals.imports[name] = f"from {module} import {name}"
        return str(name)


def _without_defaults(function: Any, kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    """The keywords of a call, without the defaults that torch's own functions add when they hand themselves on."""
    if not isinstance(function, FunctionType) or function.__module__ != nn.functional.__name__:
        return kwargs
    parameters = inspect.signature(function).parameters
    defaults = {name: parameters[name].default for name in kwargs if name in parameters}
    said = [n for n, v in kwargs.items() if n not in defaults or type(v) is not type(defaults[n]) or v != defaults[n]]
    return {name: kwargs[name] for name in said}


def _is_bool(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, fx.Node) and isinstance(example(value), bool))


def _unpacked(values: Sequence[Any]) -> tuple[fx.Node | None, int]:
    """The tuple whose items, all and in order, the values start with; and how many they are."""
    first = values[0]
    if not isinstance(first, fx.Node) or first.target is not operator.getitem or first.args[1] != 0:
        return None, 1
    source = first.args[0]
    held = example(source)
    if not isinstance(source, fx.Node) or not isinstance(held, (tuple, list)) or source.meta.get("uneven"):
        return None, 1
    count = len(held)
    for position, value in enumerate(values[:count]):
        if not isinstance(value, fx.Node) or value.target is not operator.getitem or value.args != (source, position):
            return None, 1
    return (source, count) if len(values) >= count else (None, 1)
