"""The sites of an attention, named by data flow: what its query, key and value are made from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import fx, nn

from peftc.graph import dataflow
from peftc.graph.sites import Attention, Projection, Site, Windowed, Written
from peftc.trace.roles.attention_calls import AttentionCall, apart, attention_calls, shows_all
from peftc.trace.roles.masks import mask_behind
from peftc.trace.roles.products import activity
from peftc.trace.roles.same_keys import together
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
from peftc.trace.roles.written_attention import Found, joint, mask_added

QKV = ("q", "k", "v")
HEADS = "is one of {} side by side, each with projections of its own: modules: reaches them"
PARTS = "is one of {} side by side, each with parts of the same projections"


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
    if sharing := [call for call, own in several if not apart(call, widest) and _shares(own, sites)]:
        *parts, attention = _sites(view, widest, *sharing)
        assert isinstance(attention, Attention)
        return [*parts, replace(attention, written=PARTS.format(len(sharing) + 1))]
    whole = [call for call, _ in several if call.written is None and not apart(call, widest)]
    same = [call for call in whole if call.key is widest.key]
    if len(same) > 1 and widest in same:
        *parts, attention = _sites(view, widest, *(call for call in same if call is not widest))
        assert isinstance(attention, Attention)
        return [*parts, _of_all(view, attention, same)]
    others = [own for call, own in several if apart(call, widest)]
    *parts, attention = sites
    assert isinstance(attention, Attention)
    return [*parts, _with(attention, parts, others)]


def _of_all(view: View, attention: Attention, calls: list[AttentionCall]) -> Attention:
    """An attention that is several calls over the same keys."""
    how = together(view, calls)
    if isinstance(how, str):
        return replace(attention, written=how)
    value = dataflow.example(find(view.graph, how.value))
    return replace(attention, written=how, value_width=value.shape[1] * value.shape[-1])


def _is_head(view: View, sites: list[Site], others: list[Site]) -> bool:
    """Whether an attention is one of a list that the other one is in too, each with a q or k of its own."""
    pairs = [(a, b) for a in sites for b in others if isinstance(a, Projection) and isinstance(b, Projection)]
    return any(in_one_list(view.module, a.module, b.module) for a, b in pairs if a.name == b.name and a.name in QKV)


def _shares(sites: list[Site], others: list[Site]) -> bool:
    """Whether the queries and keys of two attentions are of the same projections, and of other rows of one of them."""
    own, theirs = ({s.name[-1]: s for s in found if isinstance(s, Projection)} for found in (sites, others))
    pairs = [(own[name], theirs[name]) for name in "qk" if name in own and name in theirs]
    same = len(pairs) == 2 and all(one.node == other.node for one, other in pairs)
    return same and any(one.rows != other.rows for one, other in pairs)


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
    known = own.keys() & theirs.keys()
    return known >= {"k", "v"} and all(_same_part(own[name], theirs[name]) for name in "kv")


def _same_part(one: Projection, other: Projection) -> bool:
    if (one.module, one.rows) != (other.module, other.rows):
        return False
    return one.output == other.output or other.output in one.again


def _width(sites: list[Site]) -> int:
    return sum(site.value_width for site in sites if isinstance(site, Attention))


def _sites(view: View, call: AttentionCall, *beside: AttentionCall) -> list[Site]:
    """The sites of an attention; with those beside it, what its projections make for any of them is one part."""
    arguments = zip(*((c.query, c.key, c.value) for c in (call, *beside)), strict=True)
    made = [_parts(view, *ends) for ends in arguments]
    q, k, v = (_likeliest(parts, made) for parts in made)
    if not k or not v:
        return []
    asking = read_by(view, q[0].node) if q else call.query  # without q no one linear map makes it: experts do
    x = _shared_input(view, asking, read_by(view, k[0].node))
    if x is None and not q:
        return []
    cross = "" if x else "cross."
    given = mask_added(view, call.written) if isinstance(call.written, Found) else call.mask
    mask = None if cross else mask_behind(view, given)
    causal = (call.hides and not cross) or view.causal()
    known = [(name, parts[0]) for name, parts in zip("qkv", (q, k, v), strict=True) if len(parts) == 1]
    named = [*known, *(("o", o) for o in output_projection(view, call.node))]
    attention = _attention(view, call, x or asking, cross)
    whole = "kv" if cross else ""
    found: list[Site] = [
        replace(part, name=cross + name, causal=causal and name not in whole, mask=mask) for name, part in named
    ]
    return [*found, replace(attention, causal=causal, mask=mask)]


def _shared_input(view: View, *readers: fx.Node) -> fx.Node | None:
    """The last value that both query and key are made from; None where the keys are another sequence's."""
    first = {n: find(view.graph, view.alike[n.name]) for n in view.graph.nodes if n.name in view.alike}
    behind = [{first.get(n, n) for n in dataflow.reached(view.flow.reverse(copy=False), x)} for x in readers]
    return max(behind[0] & behind[1], default=None)


def _attention(view: View, call: AttentionCall, x: fx.Node, cross: str) -> Attention:
    hides = call.hides and not cross and not shows_all(call.node)
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


@dataclass(frozen=True)
class Part:
    """What a linear map makes of an argument, of which input, and whether an activation stands behind it alone.

    `leads`: its input is made of the first thing that the unit is given.
    """

    projection: Projection
    input: str
    active: bool
    leads: bool


def _likeliest(parts: list[Part], made: list[list[Part]]) -> list[Projection]:
    """Of the maps that make an argument together, that which says most of it; several where none does.

    It has the most rows, reads what makes other arguments of `made` too, or else what the unit is given first, and no
    activation stands behind it: not so maps of positions, gates, and the second of two maps of a low rank.
    """
    inputs = [{part.input for part in other} for other in made if other is not parts]
    shared = [sum(part.input in read for read in inputs) for part in parts]
    pairs = zip(parts, shared, strict=True)
    ranked = [(part.projection.outputs, among, part.leads, not part.active) for part, among in pairs]
    best = max(ranked, default=None)
    return [part.projection for part, rank in zip(parts, ranked, strict=True) if rank == best]


def _parts(view: View, argument: fx.Node, *others: fx.Node) -> list[Part]:
    """The nearest linears before an attention's argument, and the rows of each that arrive.

    With `others`, the rows that arrive at any of these arguments.

    What linears make for a module with linears of its own stands behind those.
    """

    def makes(node: fx.Node) -> bool:
        return view.is_linear(node) or _has_linears(view, node)

    nearest = [argument] if makes(argument) else dataflow.upstream(view.flow, argument, makes)
    nearest = [node for node in nearest if view.is_linear(node)]
    ways = [dataflow.between(view.flow, n, argument, but=[m for m in nearest if m is not n]) for n in nearest]
    alone = [set(way[1:]).difference(*(other for other in ways if other is not way)) for way in ways]
    for other in others:
        ways = [
            sorted({*way, *dataflow.between(view.flow, way[0], other), *argument.users, *other.users}) for way in ways
        ]
    found: dict[Any, Part] = {}  # of several calls of one map the first
    for each in zip(nearest, ways, alone, strict=True):
        part = _part(view, *each)
        found.setdefault((part.projection.module, part.projection.rows), part)
    return [part for part in found.values() if part.projection.outputs]


def _part(view: View, linear: fx.Node, way: list[fx.Node], alone: set[fx.Node]) -> Part:
    read, first = read_by(view, linear.name), next(iter(view.graph.nodes))
    leads = first in dataflow.reached(view.flow.reverse(copy=False), read)
    active = any(activity(node) == 2 for node in alone)
    return Part(projection(view, linear, way), view.alike.get(read.name, read.name), active, leads)


def _has_linears(view: View, node: fx.Node) -> bool:
    module = view.called(node)
    return module is not None and any(isinstance(m, nn.Linear) for m in module.modules() if m is not module)
