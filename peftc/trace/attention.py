"""The sites of an attention, named by data flow: what its query, key and value are made from."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import fx

from peftc.graph import dataflow
from peftc.graph.branches import SelfReference, lookup
from peftc.graph.sites import Attention, Projection, Site
from peftc.trace.probes import SDPA
from peftc.trace.views import View, output_projection, parameter_behind, projection, read_by, width_of


@dataclass(frozen=True)
class AttentionCall:
    """An attention node and its arguments: query, key, value, and the mask where there is one."""

    node: fx.Node
    query: fx.Node
    key: fx.Node
    value: fx.Node
    mask: fx.Node | None
    causal: bool


def attention_calls(view: View) -> list[AttentionCall]:
    """Every call of the attention interface, or of torch's own attention."""
    found = []
    for node in view.graph.nodes:
        if node.target is SDPA:
            named = inspect.signature(_sdpa).bind(*node.args, **node.kwargs).arguments
            causal = named.get("is_causal")
            found.append(
                _call(view, node, [named[k] for k in ("query", "key", "value")], named.get("attn_mask"), causal)
            )
        elif node.target == "__call__" and isinstance(node.args[0], fx.Node) and node.args[0].target is lookup:
            given = [a for a in node.args[1:] if not isinstance(a, SelfReference)]
            mask = given[3] if len(given) > 3 else node.kwargs.get("attention_mask")
            found.append(_call(view, node, given[:3], mask, node.kwargs.get("is_causal")))
    return found


def _sdpa(
    query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: Any = 0.0, is_causal: Any = False,
    scale: Any = None, enable_gqa: Any = False,
) -> None:  # fmt: skip
    """The signature of torch's attention, which is a builtin without one."""


def _call(view: View, node: fx.Node, given: list[Any], mask: Any, causal: Any) -> AttentionCall:
    unsaid = not isinstance(causal, bool) and bool(getattr(view.module, "is_causal", False))
    is_causal = _may_be_true(causal) or unsaid
    return AttentionCall(node, given[0], given[1], given[2], mask if isinstance(mask, fx.Node) else None, is_causal)


def _may_be_true(flag: Any) -> bool:
    """Whether a flag is True, in one of the cases that it is chosen from at least."""
    return any(_may_be_true(case) for case in flag.args) if isinstance(flag, fx.Node) else flag is True


def attention_sites(view: View) -> list[Site]:
    """q, k, v, (o) and the attention itself, for every attention in a unit; `cross.` where keys come from elsewhere."""
    found: list[Site] = []
    for call in attention_calls(view):
        parts = [_part(view, argument) for argument in (call.query, call.key, call.value)]
        if any(p is None for p in parts):
            continue
        q, k, v = (p for p in parts if p is not None)
        cross = "cross." if read_by(view, q.node) is not read_by(view, k.node) else ""
        mask = parameter_behind(view, call.mask)
        seen = {"causal": call.causal and not cross, "mask": None if cross else mask}
        found += [replace(p, name=cross + n, **seen) for n, p in zip("qkv", (q, k, v), strict=True)]
        found += [replace(o, name=f"{cross}o", **seen) for o in output_projection(view, call.node)]
        found.append(_attention(view, call, q, cross, seen))
    return found


def _attention(view: View, call: AttentionCall, q: Projection, cross: str, seen: Mapping[str, Any]) -> Attention:
    key, value = (n.meta["value"][0].shape for n in (call.key, call.value))
    x = read_by(view, q.node)
    return Attention(
        name=f"{cross}attention", node=call.node.name, key=call.key.name, value=call.value.name,
        mask_value=call.mask.name if call.mask is not None else None, input=x.name, width=width_of(x),
        kv_heads=key[1], key_width=key[1] * key[3], value_width=value[1] * value[3], **seen,
    )  # fmt: skip


def _part(view: View, argument: fx.Node) -> Projection | None:
    """The nearest linear before an attention's argument, and the rows of it that arrive."""
    nearest = [argument] if view.is_linear(argument) else dataflow.upstream(view.flow, argument, view.is_linear)
    if len(nearest) != 1:
        return None
    return projection(view, nearest[0], dataflow.path(view.flow, nearest[0], argument))
