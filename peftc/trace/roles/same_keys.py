"""Attentions of one forward over the same keys: what is put before the keys is there for all of them, or for none."""

from __future__ import annotations

import torch
from torch import fx

from peftc.graph import dataflow, slots
from peftc.graph.together import Together
from peftc.trace.roles.attention_calls import AttentionCall
from peftc.trace.roles.views import View

SAME_KEYS = "is one of {} over the same keys"


def together(view: View, calls: list[AttentionCall]) -> Together | str:
    """How learnt keys and values join several attentions over the same keys at once; why they can not."""
    first, *others = calls
    why = SAME_KEYS.format(len(calls))
    if any((o.query, o.mask, o.hides) != (first.query, first.mask, first.hides) for o in others):
        return why
    if any(c.node.meta.get("guard") or slots.handed(c.node) is not None for c in calls):
        return why
    value = _shared_value(view, first.key, [call.value for call in calls])
    if value is None:
        return why
    ways = {n for call in calls for n in dataflow.between(view.flow, value, call.value)}
    readers = sorted(user for user in value.users if user in ways)
    given = [n for n in (first.query, first.key, first.mask) if n is not None and n.op != "placeholder"]
    if any(node > readers[0] for node in given) or not all(_keeps(view, value, call.value) for call in calls):
        return why
    return Together(value.name, tuple(r.name for r in readers), tuple(call.node.name for call in calls))


def _shared_value(view: View, key: fx.Node, values: list[fx.Node]) -> fx.Node | None:
    """The last tensor (batch, heads, length, width) that all of these are made of."""
    back = view.flow.reverse(copy=False)
    shared = set.intersection(*(dataflow.reached(back, value) for value in values))
    return max((node for node in shared if _like(node, key)), default=None)


def _like(node: fx.Node, key: fx.Node) -> bool:
    """Whether a node is a tensor with the batch and the length of keys, in their places."""
    held, keys = dataflow.example(node), dataflow.example(key)
    shaped = isinstance(held, torch.Tensor) and held.dim() == 4 and held.is_floating_point()
    return shaped and (held.shape[0], held.shape[2]) == (keys.shape[0], keys.shape[2])


def _keeps(view: View, source: fx.Node, result: fx.Node) -> bool:
    """Whether a result has, for further positions of its source, what it is made of at those; and in their order."""
    way = dataflow.between(view.flow, source, result)[1:]
    if not way or not all(node.op in ("call_function", "call_method") for node in way):
        return False
    own, more = dataflow.numbers(source, 0), dataflow.numbers(source, 1)
    try:
        parts = [_made(way, source, states) for states in (own, more, torch.cat([own, more], 2))]
    except RuntimeError:  # a size that the forward names
        return False
    return torch.equal(torch.cat(parts[:2], 2), parts[2])


def _made(way: list[fx.Node], source: fx.Node, states: torch.Tensor) -> torch.Tensor:
    held = {source: states}
    for node in way:
        held[node] = dataflow.recomputed(node, held)
    return held[way[-1]]
