"""Which of its own **kwargs a forward reads: by their names in its source, or as parameters of what it calls."""

from __future__ import annotations

import ast
import inspect
import json
import operator
import textwrap
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

from torch import fx

from peftc.trace.tracer.values import EXTRA, Deciding, Value, named

READS = ("get", "pop", "setdefault")


def wanted(forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[str]:
    """The names that a call may take from the **kwargs it is handed: what it reads there, and optional parameters."""
    bound = inspect.signature(forward).bind_partial(None, *args, **named(kwargs)).arguments
    optional = (p for p in inspect.signature(forward).parameters.values() if p.default is not p.empty)
    return [*sorted(reads(forward)), *(p.name for p in optional if p.name not in bound)]


def fitting(
    tracer: Deciding, forward: Callable[..., Any], kwargs: dict[str, Any], more: Mapping[str, Any]
) -> dict[str, Any]:
    """The keywords of a call; without the unit's **kwargs, behind a check, where it takes none but `more` of them."""
    extra, parameters = kwargs.get(EXTRA), inspect.signature(forward).parameters.values()
    any_name = any(p.kind is p.VAR_KEYWORD for p in parameters)
    if type(extra) is not Value or any_name or any(point.keys() - more.keys() for point in extra.points):
        return kwargs
    known = ", ".join(map(json.dumps, sorted(more)))
    condition = f"{extra.node.target}.keys() <= {{{known}}}" if known else f"not {extra.node.target}"
    tracer.assume(condition, True, "calls with further keywords").meta["key"] = ("assume", condition)
    return named(kwargs)


def asked(kind: type) -> set[str]:
    """The keys that a class's forward asks its **kwargs for, or its parent's forward, which it hands them to."""
    own, *above = (vars(base)["forward"] for base in kind.__mro__ if "forward" in vars(base))
    found = set(reads(own))
    for parent in above if _hands_up(own) else ():
        taken = inspect.signature(parent).parameters.values()
        found |= {*reads(parent), *(p.name for p in taken if p.kind is p.POSITIONAL_OR_KEYWORD)} - {"self"}
        if not _hands_up(parent):
            break
    return found


@cache
def reads(forward: Callable[..., Any]) -> frozenset[str]:
    """The keys that a forward's own source asks its **kwargs for."""
    function = _written(forward)
    if function is None or function.args.kwarg is None:
        return frozenset()
    name = function.args.kwarg.arg
    keys = (key for node in ast.walk(function) for key in _keys(node, name))
    return frozenset(k.value for k in keys if isinstance(k, ast.Constant) and isinstance(k.value, str))


def _written(forward: Callable[..., Any]) -> ast.FunctionDef | ast.Lambda | None:
    try:
        source = textwrap.dedent(inspect.getsource(inspect.unwrap(forward)))
    except (OSError, TypeError):
        return None
    return next(n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef | ast.Lambda))


@cache
def _hands_up(forward: Callable[..., Any]) -> bool:
    """Whether a forward hands its **kwargs to super().forward."""
    function = _written(forward)
    calls = [n for n in ast.walk(function) if isinstance(n, ast.Call)] if function and function.args.kwarg else []
    return any(ast.unparse(call.func) == "super().forward" and None in {k.arg for k in call.keywords} for call in calls)


def _keys(node: ast.AST, name: str) -> Iterator[ast.expr]:
    """The keys of one expression that looks into a mapping: d.get(k), d[k], k in d."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in READS:
        yield from node.args[:1] if _is(node.func.value, name) else ()
    if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load) and _is(node.value, name):
        yield node.slice
    if isinstance(node, ast.Compare) and _is(node.comparators[0], name):
        yield node.left


def _is(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def each_once(keywords: dict[str, Any]) -> dict[str, Any]:
    """The keywords of a call without those that its own **kwargs hand on as well."""
    extra = keywords.get(EXTRA)
    if not isinstance(extra, fx.Node):
        return keywords
    return {name: value for name, value in keywords.items() if not _is_read(value, name, extra)}


def _is_read(value: Any, name: str, extra: fx.Node) -> bool:
    """Whether a value is what **kwargs have under a name: a read of it, or the constant that it was."""
    if isinstance(value, fx.Node):
        return value.target is operator.getitem and value.args == (extra, name)
    given: dict[str, Any] = extra.meta["value"][0]
    return name in given and given[name] is value
