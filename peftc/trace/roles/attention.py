"""The sites of an attention, named by data flow: what its query, key and value are made from."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import FunctionType
from typing import Any

import torch
from torch import fx, nn

from peftc.graph import dataflow
from peftc.graph.branches import SelfReference, lookup
from peftc.graph.sites import Attention, Projection, Site, Windowed, Written
from peftc.trace.record.calls import SDPA
from peftc.trace.record.nested import tensors_in
from peftc.trace.roles.masks import mask_behind
from peftc.trace.roles.views import (
    View,
    axes,
    find,
    in_one_list,
    output_projection,
    projection,
    read_by,
    width_of,
)
from peftc.trace.roles.windowed_attention import windowed
from peftc.trace.roles.written_attention import Found, attentions, joint, mask_added

QKV = ("q", "k", "v")
HEADS = "is one of {} side by side, each with projections of its own: modules: reaches them"


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
        products = _written_calls(view) if guarded else []
        return [*whole, *(call for call in products if all(_apart(call, other) for other in whole))]
    return list(_written_calls(view)) or list(_named_calls(view))


def _written_calls(view: View) -> Iterator[AttentionCall]:
    for found in attentions(view):
        yield AttentionCall(found.total, found.query, found.key, found.value, None, is_causal(view, None), found)


def _apart(one: AttentionCall, other: AttentionCall) -> bool:
    """Whether two attentions stand in the two branches of one condition."""
    guards = [{(g.condition, g.branch) for g in call.node.meta.get("guard", ())} for call in (one, other)]
    return any((condition, not branch) in guards[1] for condition, branch in guards[0])


def _named_calls(view: View) -> Iterator[AttentionCall]:
    for node in view.graph.nodes:
        named = _by_name(node)
        given = [named.get(name) for name in ("query", "key", "value")]
        states = [n for n in given if isinstance(n, fx.Node) and isinstance(n.meta["value"][0], torch.Tensor)]
        if len(states) == 3 and _depends(node, states):
            reason = "is computed by a function of the model's own"
            yield AttentionCall(node, states[0], states[1], states[2], None, is_causal(view, None), reason)


def _by_name(node: fx.Node) -> Mapping[str, Any]:
    """The arguments of a call of the model's own function by the names of its parameters."""
    function: Any = node.target
    args: tuple[Any, ...] = node.args
    if function == "apply" and isinstance(args[0], type):
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


def _shows_all(node: fx.Node) -> bool:
    """Whether torch's own attention is called so that, without a mask, each query sees every key."""
    return node.target is SDPA and not _of_sdpa(node).get("is_causal")


def _may_be_true(flag: Any) -> bool:
    """Whether a flag is True, in one of the cases that it is chosen from at least."""
    return any(_may_be_true(case) for case in flag.args) if isinstance(flag, fx.Node) else flag is True


def attention_sites(view: View) -> list[Site]:
    """The sites of an attention: q, k, v, o where there is one, and the attention itself.

    They are named `cross.…` where the keys come from another sequence.  Of several attentions the widest one counts;
    those that stand in other branches of the forward are the same site.  What k and v of a cross-attention read is
    whole before the first query.
    """
    found: dict[str, list[tuple[AttentionCall, list[Site]]]] = {}
    for call in attention_calls(view):
        if sites := _sites(view, call):
            found.setdefault(sites[-1].name, []).append((call, sites))
    return [site for several in found.values() for site in _one(view, several)]


def _one(view: View, several: list[tuple[AttentionCall, list[Site]]]) -> list[Site]:
    """The sites of the widest of several attentions, which stands for those in other branches."""
    widest, sites = max(several, key=lambda pair: _width(pair[1]))
    if beside := [own for _, own in several if _is_head(view, own, sites)]:
        *_, attention = sites
        assert isinstance(attention, Attention)
        return [replace(attention, written=HEADS.format(len(beside) + 1))]
    others = [own for call, own in several if _apart(call, widest)]
    *parts, attention = sites
    assert isinstance(attention, Attention)
    return [*parts, _with(attention, parts, others)]


def _is_head(view: View, sites: list[Site], others: list[Site]) -> bool:
    """Whether an attention is one of a list that the other one is in too, each with a q or k of its own."""
    pairs = [(a, b) for a in sites for b in others if isinstance(a, Projection) and isinstance(b, Projection)]
    return any(in_one_list(view.module, a.module, b.module) for a, b in pairs if a.name == b.name and a.name in QKV)


def _with(attention: Attention, parts: list[Site], others: list[list[Site]]) -> Attention:
    """The attention with what it is in other branches; `written` says why where they cannot be changed together."""
    same: list[Attention] = []
    for *own, other in others:
        assert isinstance(other, Attention)
        if isinstance(other.written, str):
            return replace(attention, written=f"stands in two branches, and in one it {other.written}")
        if not _alike(attention, other) or not _same_parts(parts, own):
            return replace(attention, written="stands in two branches, in which other projections make its keys")
        same.append(other)
    return replace(attention, others=tuple(same))


def _alike(one: Attention, other: Attention) -> bool:
    return (one.input, one.key_width, one.value_width) == (other.input, other.key_width, other.value_width)


def _same_parts(parts: list[Site], others: list[Site]) -> bool:
    """Whether k and v are what the other attention has, or another call of its module."""
    own, theirs = ({s.name[-1]: s for s in found if isinstance(s, Projection)} for found in (parts, others))
    return all(_same_part(own[name], theirs[name]) for name in "kv")


def _same_part(one: Projection, other: Projection) -> bool:
    if (one.module, one.rows) != (other.module, other.rows):
        return False
    return one.output == other.output or other.output in one.again


def _width(sites: list[Site]) -> int:
    return sum(site.value_width for site in sites if isinstance(site, Attention))


def _sites(view: View, call: AttentionCall) -> list[Site]:
    q, k, v = (_part(view, argument) for argument in (call.query, call.key, call.value))
    if k is None or v is None:
        return []
    asking = read_by(view, q.node) if q else call.query  # without q no one linear map makes it: experts do
    x = _shared_input(view, asking, read_by(view, k.node))
    if x is None and q is None:
        return []
    cross = "" if x else "cross."
    given = mask_added(view, call.written) if isinstance(call.written, Found) else call.mask
    mask = None if cross else mask_behind(view, given)
    causal = (call.hides and not cross) or view.causal()
    named = [*zip("qkv", (q, k, v), strict=True), *(("o", o) for o in output_projection(view, call.node))]
    attention = _attention(view, call, x or asking, cross)
    whole = "kv" if cross else ""
    found: list[Site] = [
        replace(part, name=cross + name, causal=causal and name not in whole, mask=mask) for name, part in named if part
    ]
    return [*found, replace(attention, causal=causal, mask=mask)]


def _shared_input(view: View, *readers: fx.Node) -> fx.Node | None:
    """The last value that both query and key are made from; None where the keys are another sequence's."""
    first = {n: find(view.graph, view.alike[n.name]) for n in view.graph.nodes if n.name in view.alike}
    behind = [{first.get(n, n) for n in dataflow.reached(view.flow.reverse(copy=False), x)} for x in readers]
    return max(behind[0] & behind[1], default=None)


def _attention(view: View, call: AttentionCall, x: fx.Node, cross: str) -> Attention:
    hides = call.hides and not cross and not _shows_all(call.node)
    written = joined(view, call.written, x, hides) if isinstance(call.written, Found) else call.written
    if isinstance(written, Written | Windowed):
        heads, key_width, value_width = written.heads, written.key_width, written.value_width
    else:
        key, value_width = call.key.meta["value"][0].shape, call.value.meta["value"][0].shape[-1]
        heads, key_width = key[1] if len(key) == 4 else 1, key[-1]
    flat, turned = axes(x.meta["value"])
    return Attention(
        name=f"{cross}attention", node=call.node.name, key=call.key.name, input=x.name, width=width_of(x),
        key_width=heads * key_width, value_width=heads * value_width, written=written, hides=hides,
        flat=flat, turned=turned,
    )  # fmt: skip


def joined(view: View, found: Found, x: fx.Node, causal: bool) -> Written | Windowed | str:
    """How learnt keys and values join an attention that is written out: its products, or beside them; or why not."""
    products = joint(view, found, x, causal)
    return products if isinstance(products, Written) else windowed(view, found) or products


def _part(view: View, argument: fx.Node) -> Projection | None:
    """The nearest linear before an attention's argument, and the rows of it that arrive; of several, the largest.

    What linears make for a module with linears of its own stands behind those.
    """

    def makes(node: fx.Node) -> bool:
        return view.is_linear(node) or _has_linears(view, node)

    nearest = [argument] if makes(argument) else dataflow.upstream(view.flow, argument, makes)
    nearest = [node for node in nearest if view.is_linear(node)]
    ways = [dataflow.between(view.flow, n, argument, but=[m for m in nearest if m is not n]) for n in nearest]
    parts = [projection(view, linear, way) for linear, way in zip(nearest, ways, strict=True)]
    return max((part for part in parts if part.outputs), key=lambda part: part.outputs, default=None)


def _has_linears(view: View, node: fx.Node) -> bool:
    module = view.called(node)
    return module is not None and any(isinstance(m, nn.Linear) for m in module.modules() if m is not module)
