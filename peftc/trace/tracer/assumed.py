"""What all calls of a unit agree about, given by none of them or by each: a check where another call would differ."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from torch import fx, nn

from peftc.graph.branches import assume, choose
from peftc.trace.record.feeds import parameters
from peftc.trace.record.observed import Call
from peftc.trace.tracer.arguments import arguments_of, default_of, is_given, without
from peftc.trace.tracer.merge import merge
from peftc.trace.tracer.tracer import UNTRACEABLE
from peftc.trace.tracer.values import Argument

Traced = Callable[[list[Argument]], fx.Graph]


def check_parameters(
    graph: fx.Graph, module: nn.Module, calls: Sequence[Call], sketch: fx.Graph, trace: Traced
) -> frozenset[str]:
    """Checks, in the graph of these calls, of what a call of another kind would make a difference to.

    `sketch` is the graph of the first call alone; `trace` makes that of other arguments.  Returns those parameters,
    checked too, that no call gives and that are no more than handed on.
    """
    unit, handed = type(module).__name__, set[str]()
    for name in _always_given(module, calls):
        if _does_without(module, calls[0], name, sketch, trace):
            always = f"{unit} was compiled for calls with {name}: recompile for a base without it"
            _check(graph, name, f"{name} is None", always)
    for name in (n for n in _named(module) if not any(is_given(call, n) for call in calls)):
        other = _given(module, calls[0], name, trace)
        uses = [n for n in other.nodes if n.op == "placeholder" and n.target == name and n.users] if other else []
        same = other is not None and keys(other, but=name) == keys(sketch, but=name)
        if not same or uses:
            default = default_of(parameters(module)[name])
            never = f"{unit} was compiled for {name}={default!r}: recompile for a base that gives another"
            _check(graph, name, f"{name} {_other_than(default)}", never)
        if same and uses and all(_hands_on(user, use) for use in uses for user in use.users):
            handed.add(name)
    return frozenset(handed)


def giving(call: Call, names: frozenset[str]) -> Call:
    """The call, which gives some more parameters something that no forward can read."""
    return tuple(replace(r, named={**r.named, **dict.fromkeys(names, UNREAD)}) for r in call)


def part(given: fx.Graph, left_out: fx.Graph, name: str) -> bool:
    """Whether two traces, of calls that give a parameter and that leave it out, do more apart than hand it on."""
    condition = f"{name} is not None"
    both = merge(given, left_out, condition)
    guarded = any(g.condition == condition for n in both.nodes for g in n.meta.get("guard", ()))
    return guarded or any(n.target is choose and n.args[0] == condition for n in both.nodes)


def keys(graph: fx.Graph, but: str = "") -> list[object]:
    """What a trace came by, in order, but for one parameter."""
    return [n.meta["key"] for n in graph.nodes if n.target != but]


def _named(module: nn.Module) -> Iterator[str]:
    return (n for n, p in parameters(module).items() if p.kind is not inspect.Parameter.VAR_KEYWORD)


def _always_given(module: nn.Module, calls: Sequence[Call]) -> Iterator[str]:
    """The parameters that every call gives, and that may be None: by default, or where None is handed on."""
    optional = (n for n in _named(module) if default_of(parameters(module)[n]) is None)
    return (n for n in optional if all(is_given(call, n) for call in calls))


def _does_without(module: nn.Module, call: Call, name: str, sketch: fx.Graph, trace: Traced) -> bool:
    """Whether the forward runs without this parameter, and then does something else."""
    try:
        other = trace(arguments_of(module, without(call, name)))
    except UNTRACEABLE:
        return False
    return part(sketch, other, name)


def _given(module: nn.Module, call: Call, name: str, trace: Traced) -> fx.Graph | None:
    """The graph of a call that gives this parameter too; None where the forward reads it."""
    try:
        return trace(arguments_of(module, giving(call, frozenset({name}))))
    except UNTRACEABLE:
        return None


def _hands_on(user: fx.Node, parameter: fx.Node) -> bool:
    """Whether a call hands a parameter on by its own name, and in no other way."""
    return [name for name, value in user.kwargs.items() if value is parameter] == [parameter.target] and not any(
        value is parameter for value in user.args
    )


def _other_than(default: object) -> str:
    if default is None:
        return "is not None"
    return "not in (None, False)" if default is False else f"!= {default!r}"


class _Unread:
    """Stands for an argument that was never seen: any use of it fails."""


UNREAD = _Unread()


def _check(graph: fx.Graph, name: str, failing: str, message: str) -> None:
    last = [n for n in graph.nodes if n.op == "placeholder"][-1]
    with graph.inserting_after(last):
        node = graph.call_function(assume, (failing, False, message))
    node.meta.update(key=("assume", name), names=[], scope=(), guard=(), value=(None, None))
