"""The attentions of a graph: calls of an interface or of torch's own, products around a softmax, a model's function."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import fx

from peftc.graph import dataflow
from peftc.graph.branches import SelfReference, lookup
from peftc.trace.record.calls import SDPA
from peftc.trace.record.nested import tensors_in
from peftc.trace.roles.views import View
from peftc.trace.roles.written_attention import Found, attentions

SEVERAL = "is written out with {} softmaxes, of which one is chosen"


@dataclass(frozen=True)
class AttentionCall:
    """An attention node and its arguments: query, key, value, and the mask where there is one.

    `hides`: without a mask, query i sees the keys 0 to i alone.
    """

    node: fx.Node
    query: fx.Node
    key: fx.Node
    value: fx.Node
    mask: fx.Node | None
    hides: bool
    written: Found | str | None = None


def attention_calls(view: View) -> list[AttentionCall]:
    """The attentions of a graph: its calls of the attention interface and of torch's own attention.

    Without such a call: each softmax between two products; without one, each call of a function of the model's own
    whose parameters are named query, key and value.  Where all calls stand in a branch, products in the other branch
    count too.
    """
    whole = _whole_calls(view)
    if whole:
        guarded = all(call.node.meta.get("guard") for call in whole)
        products = [*_written_calls(view), *_named_calls(view)] if guarded else []
        return [*whole, *(call for call in products if all(apart(call, other) for other in whole))]
    return list(_written_calls(view)) or list(_named_calls(view))


def _written_calls(view: View) -> Iterator[AttentionCall]:
    each: dict[fx.Node, list[Found]] = {}
    for found in attentions(view):
        each.setdefault(found.total, []).append(found)
    for total, (found, *others) in each.items():
        written = SEVERAL.format(1 + len(others)) if others else found
        yield AttentionCall(total, found.query, found.key, found.value, None, is_causal(view, None), written)


def apart(one: AttentionCall, other: AttentionCall) -> bool:
    """Whether two attentions stand in the two branches of one condition."""
    guards = [{(g.condition, g.branch) for g in call.node.meta.get("guard", ())} for call in (one, other)]
    return any((condition, not branch) in guards[1] for condition, branch in guards[0])


def _named_calls(view: View) -> Iterator[AttentionCall]:
    for node in view.graph.nodes:
        named = _by_name(view, node)
        given = [named.get(name) for name in ("query", "key", "value")]
        states = [n for n in given if isinstance(n, fx.Node) and isinstance(n.meta["value"][0], torch.Tensor)]
        if len(states) == 3 and (dataflow.own_method(node) is not None or _depends(node, states)):
            reason = "is computed by a function of the model's own"
            yield AttentionCall(node, states[0], states[1], states[2], None, is_causal(view, None), reason)


def _by_name(view: View, node: fx.Node) -> Mapping[str, Any]:
    """The arguments of a call of the model's own function, or method, by the names of its parameters."""
    function: Any = node.target
    args: tuple[Any, ...] = node.args
    if dataflow.own_method(node) is not None:
        function = getattr(type(view.owner(node)), str(node.target))
    elif function == "apply" and isinstance(args[0], type):
        function, args = getattr(args[0], "forward", None), (None, *args[1:])
    if not isinstance(function, FunctionType) or function.__module__.startswith("torch."):
        return {}
    return inspect.signature(function).bind(*args, **node.kwargs).arguments


def _depends(node: fx.Node, states: list[fx.Node]) -> bool:
    """Whether what a call returns has a gradient by each of these: a model may do without its kernel here."""
    leaves = {state: state.meta["value"][0].detach().clone().requires_grad_() for state in states}
    with torch.enable_grad():
        result = next(tensors_in(dataflow.recomputed(node, leaves)), None)
    if result is None or not result.requires_grad:
        return False
    return all(g is not None for g in torch.autograd.grad(result.sum(), list(leaves.values()), allow_unused=True))


def _whole_calls(view: View) -> list[AttentionCall]:
    found = []
    for node in view.graph.nodes:
        if node.target is SDPA:
            named = _of_sdpa(node)
            found.append(_call(view, node, named, named.get("attn_mask"), named.get("is_causal")))
        elif node.target == "__call__" and isinstance(node.args[0], fx.Node) and node.args[0].target is lookup:
            given = [a for a in node.args[1:] if not isinstance(a, SelfReference)]
            named = inspect.signature(_interface).bind(*given, **node.kwargs).arguments
            found.append(_call(view, node, named, named.get("attention_mask"), node.kwargs.get("is_causal")))
    return found


def _of_sdpa(node: fx.Node) -> Mapping[str, Any]:
    """The arguments of a call of torch's attention, by name."""
    return inspect.signature(_sdpa).bind(*node.args, **node.kwargs).arguments


def _interface(query: Any, key: Any, value: Any, attention_mask: Any = None, *options: Any, **named: Any) -> None:
    """What every function of transformers' attention interface takes after the module."""


def _sdpa(
    query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: Any = 0.0, is_causal: Any = False,
    scale: Any = None, enable_gqa: Any = False,
) -> None:  # fmt: skip
    """The signature of torch's attention, which is a builtin without one."""


def _call(view: View, node: fx.Node, named: Mapping[str, Any], mask: Any, causal: Any) -> AttentionCall:
    seen = mask if isinstance(mask, fx.Node) else None
    query, key, value = (named[name] for name in ("query", "key", "value"))
    reason = None if key.meta["value"][0].dim() == 4 else "has keys that are not (batch, heads, length, width)"
    return AttentionCall(node, query, key, value, seen, is_causal(view, causal), reason)


def is_causal(view: View, flag: Any) -> bool:
    """What the call or the module says; where neither does, a cache of earlier tokens, or the model's own behaviour."""
    said = getattr(view.module, "is_causal", None)
    if _may_be_true(flag) or said is not None:
        return _may_be_true(flag) or bool(said)
    return any(n.target == "update" for n in view.graph.nodes) or view.causal()


def shows_all(node: fx.Node) -> bool:
    """Whether torch's own attention is called so that, without a mask, each query sees every key."""
    return node.target is SDPA and not _of_sdpa(node).get("is_causal")


def _may_be_true(flag: Any) -> bool:
    """Whether a flag is True, in one of the cases that it is chosen from at least."""
    return any(_may_be_true(case) for case in flag.args) if isinstance(flag, fx.Node) else flag is True
