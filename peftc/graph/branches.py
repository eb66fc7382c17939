"""Graphs with branches: nodes under a guard, values chosen by a condition, and the extent of inlined modules."""

from __future__ import annotations

import keyword
import operator
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import fx


@dataclass(frozen=True)
class SelfReference:
    """The unit itself (path ""), or a module inside it, as an argument of a node."""

    path: str


def attribute(*paths: str) -> str:
    """`self.layers[0].norm`: a dotted path in the unit, or several one below the other, as attribute access."""
    text = "self"
    for part in filter(None, ".".join(paths).split(".")):
        if part.isdigit():
            text += f"[{part}]"
        elif part.isidentifier() and not keyword.iskeyword(part):
            text += f".{part}"
        else:
            text = f"getattr({text}, {part!r})"
    return text


class Lifted:
    """A number that remembers its source, `self.head_dim` or `3 * self.head_dim`, and the precedence of that."""

    source: str
    level: int = 10

    def within(self, level: int) -> str:
        """The source as an operand of what has this precedence."""
        return f"({self.source})" if self.level < level else self.source

    def __neg__(self) -> Any:
        return _combined("-", 7, operator.neg, self)

    def __add__(self, other: Any) -> Any:
        return _combined("+", 5, operator.add, self, other)

    def __radd__(self, other: Any) -> Any:
        return _combined("+", 5, operator.add, other, self)

    def __sub__(self, other: Any) -> Any:
        return _combined("-", 5, operator.sub, self, other)

    def __rsub__(self, other: Any) -> Any:
        return _combined("-", 5, operator.sub, other, self)

    def __mul__(self, other: Any) -> Any:
        return _combined("*", 6, operator.mul, self, other)

    def __rmul__(self, other: Any) -> Any:
        return _combined("*", 6, operator.mul, other, self)

    def __truediv__(self, other: Any) -> Any:
        return _combined("/", 6, operator.truediv, self, other)

    def __rtruediv__(self, other: Any) -> Any:
        return _combined("/", 6, operator.truediv, other, self)

    def __floordiv__(self, other: Any) -> Any:
        return _combined("//", 6, operator.floordiv, self, other)

    def __pow__(self, other: Any, modulus: None = None) -> Any:
        return _combined("**", 8, operator.pow, self, other)


class LiftedInt(Lifted, int):  # type: ignore[misc]  # an int's power may be a float
    """An integer that a module's attributes give."""


class LiftedFloat(Lifted, float):
    """A float that a module's attributes give."""


class Size(int):
    """A size that the examples share: where it was read, and the variable of the source that holds it.

    `read_from` are keys of nodes, a tensor or a tuple of sizes, each with the item that it is.
    """

    read_from: tuple[tuple[Hashable, int], ...]
    name: str | None = None


LONGEST = 46  # of what is worth more than the number that it gives
PLAIN: Mapping[type, type] = {int: int, float: float, LiftedInt: int, LiftedFloat: float, Size: int}


def _combined(sign: str, level: int, operation: Callable[..., Any], *operands: Any) -> Any:
    """A number made of others, with the expression for it where that is short; NotImplemented for what is no number."""
    if flags := [operand for operand in operands if type(operand) is bool]:
        number = next(operand for operand in operands if isinstance(operand, Lifted))
        kept = sign == "*" and flags[0]
        return number if kept else operation(*(PLAIN.get(type(o), int)(o) for o in operands))
    if any(type(operand) not in PLAIN for operand in operands):
        return NotImplemented
    if sign == "*" and any(type(operand) is int and operand == 1 for operand in operands):
        return next(operand for operand in operands if isinstance(operand, Lifted))
    value = operation(*(PLAIN[type(operand)](operand) for operand in operands))
    texts = [_operand(operand, level + place) for place, operand in enumerate(operands)]
    apart = "" if sign == "**" and not any(" " in text for text in texts) else " "
    source = f"{apart}{sign}{apart}".join(texts) if len(texts) == 2 else sign + texts[0]
    if type(value) not in (int, float) or len(source) > LONGEST:
        return value
    return lifted(value, source, level)


def _operand(value: Any, level: int) -> str:
    return value.within(level) if isinstance(value, Lifted) else repr(value)


def lifted(value: float, source: str, level: int = Lifted.level) -> Any:
    """A number that says where it is from."""
    number: Any = LiftedInt(value) if type(value) is int else LiftedFloat(value)
    number.source, number.level = source, level
    return number


class LiftedStr(str):
    """A string attribute that is read again at run time, which remembers its source."""

    source: str


def unlifted(value: object) -> bool:
    """Whether a constant is of a kind that can't remember its source."""
    return value is None or isinstance(value, bool)


def given(node: fx.Node) -> dict[str, Any]:
    """The keyword arguments of a call; one that is None or a bool as an attribute was, as what reads that attribute."""
    keywords: dict[str, Any] = dict(node.kwargs)
    for name, source in node.meta.get("absent", {}).items():
        if unlifted(keywords.get(name, ...)):
            keywords[name] = LiftedStr(source)
            keywords[name].source = source
    return keywords


@dataclass(frozen=True)
class Guard:
    """A node's `if`: the condition, as Python source or as the node that computes it, and the branch it stands in."""

    condition: str | fx.Node
    branch: bool


def moved(guards: tuple[Guard, ...], table: Mapping[fx.Node, fx.Node]) -> tuple[Guard, ...]:
    """The same guards in a copied graph, whose nodes the table gives."""
    return tuple(replace(g, condition=_moved(g.condition, table)) for g in guards)


def _moved(condition: str | fx.Node, table: Mapping[fx.Node, fx.Node]) -> str | fx.Node:
    return table[condition] if isinstance(condition, fx.Node) else condition


def inputs(value: Any) -> list[fx.Node]:
    """Every node in a value, as often as it stands there."""
    found: list[fx.Node] = []

    def note(node: fx.Node) -> fx.Node:
        found.append(node)
        return node

    fx.node.map_arg(value, note)
    return found


def lookup(implementation: str, default: Callable[..., Any], example: Callable[..., Any]) -> Callable[..., Any]:
    """The attention function that the config names; while tracing, a stand-in with the same output shapes."""
    return example


def base_forward(*args: Any, **kwargs: Any) -> Any:
    """The base class's own forward: printed as `super().forward(...)`.  Never run."""
    raise AssertionError("base_forward() is printed, not run")


def choose(condition: Any, if_true: Any, if_false: Any) -> Any:
    """A value that differs by branch.  Only printed, never run."""
    raise AssertionError(f"choose({condition}) is printed, not run")


def is_flag(node: fx.Node) -> bool:
    """Whether a choice is its own condition: True where that holds, else False."""
    return node.target is choose and isinstance(node.args[0], str) and node.args[1:] == (True, False)


def assume(condition: Any, outcome: bool, message: str) -> None:
    """What tracing took for granted, as a value or as Python source: printed as a check that raises.  Never run."""
    raise AssertionError("assume() is printed, not run")


def enter(path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """The start of an inlined module: the call that was inlined."""


def leave(path: str, result: Any) -> None:
    """The end of an inlined module: what the call returned."""


def end_of(node: fx.Node) -> fx.Node:
    """The end of the inlined modules whose result a node is, or the node: what only reads it stands behind."""
    end = node
    while end.next.target is leave and node in end.next.all_input_nodes:
        end = end.next
    return end
