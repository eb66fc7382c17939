"""The sites of a block, named by data flow: what the residual stream takes in, and the feed-forward behind it."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from peftc.graph import dataflow
from peftc.graph.sites import Attention, Projection, Site, Sublayer
from peftc.trace.roles.added_outside import added_within, as_returned, bound, ends, returned
from peftc.trace.roles.masks import mask_behind
from peftc.trace.roles.mixing import mixing
from peftc.trace.roles.norms import is_normed, norm_behind
from peftc.trace.roles.products import activity
from peftc.trace.roles.residual import (
    adds_streams,
    both_computed,
    computes,
    joins,
    operands,
    origin,
    stream,
    taken_in,
)
from peftc.trace.roles.views import (
    View,
    axes,
    find,
    has_features,
    in_one_list,
    output_projection,
    parameter_behind,
    projection,
    read_by,
    width_of,
)

CASTS = frozenset({"to", "float", "type_as"})
MULTIPLIES = (operator.mul, operator.imul, torch.mul)


@dataclass(frozen=True, eq=False)
class AttentionSeen:
    """An attention as the block sees it: where it runs, its input, and what its own sites say of it."""

    node: fx.Node
    input: fx.Node
    name: str
    causal: bool
    mask: str | None
    projects: bool


def block_sites(view: View, inner: Mapping[str, tuple[View, list[Site]]], own: list[Site]) -> list[Site]:
    """o, the sublayers, and the feed-forward's projections of a block; `inner` are its attention units by path.

    Where no attention says that the block is causal, its use, or its model's behaviour, may.
    """
    seen = [*_inner_attentions(view, inner), *_own_attentions(view, own)]
    attends = {attention.node for attention in seen}
    found: list[Site] = []
    back = view.flow.reverse(copy=False)
    for attention in seen:
        cross = attention.name.removesuffix("attention")
        sees, mask = attention.causal, None if cross else attention.mask
        sublayer = _sublayer(view, attention.node, attention.input, attends, f"{cross}attention_output")
        outputs = [] if attention.projects else list(output_projection(view, attention.node))
        if outputs and sublayer:
            before = dataflow.reached(back, find(view.graph, sublayer.output))
            outputs = [o for o in outputs if find(view.graph, o.node) in before]
        found += [replace(o, name=f"{cross}o", causal=sees, mask=mask) for o in outputs]
        found += [replace(sublayer, causal=sees, mask=mask)] if sublayer else []
    within = [a for a in seen if not a.name.startswith("cross.")]
    causal = any(a.causal for a in within) or view.causal()
    mask = next((a.mask for a in seen if a.mask), None)
    taken = {s.node for s in (*found, *own) if isinstance(s, Projection)}
    feed = _feed_forward(view, taken, attends)
    maps = [site for site in feed if isinstance(site, Projection)]
    if maps == feed and (way := ends(view, maps, attends, inner)):
        feed += added_within(view, inner, *way)
    return [*found, *(replace(s, causal=causal, mask=mask) for s in feed)]


def with_output(view: View, own: list[Site]) -> list[Site]:
    """The sites of an attention, and its output where it adds that to what it was given itself."""
    found: list[Site] = []
    for site in own:
        if not isinstance(site, Attention):
            continue
        start, x = find(view.graph, site.node), find(view.graph, site.input)
        output = _sublayer(view, start, x, set(), f"{site.name}_output")
        if output and output.residual and find(view.graph, output.residual).op == "placeholder":
            found.append(replace(output, causal=site.causal, mask=site.mask))
    return [*own, *found]


def other_sites(view: View, kept: frozenset[str]) -> list[Site]:
    """The feed-forward of a block that does not attend, in a model of which others do; what uses a cache is none.

    In a block without a cache, only projections up and down show that it is a feed-forward.  One that has them and adds
    nothing to a residual is added to it outside.
    """
    mixes = mixing(view, kept)
    found = _feed_forward(view, {node.name for node in view.linears() if node in mixes}, mixes)
    projections = [site for site in found if isinstance(site, Projection)]
    if projections == found:
        found = as_returned(view, projections) or found
    return [replace(site, causal=view.causal()) for site in found] if kept or projections else []


def feed_sites(view: View, causal: bool) -> list[Site]:
    """The sites of a feed-forward that is a unit of its own: what it returns is what joins the residual, outside."""
    projections = [s for s in _feed_forward(view, set(), set()) if isinstance(s, Projection)]
    return [replace(site, causal=causal) for site in as_returned(view, projections)]


def _inner_attentions(view: View, inner: Mapping[str, tuple[View, list[Site]]]) -> Iterator[AttentionSeen]:
    for node in view.graph.nodes:
        if node.op != "call_module" or str(node.target) not in inner:
            continue
        unit, sites = inner[str(node.target)]
        given = bound(unit.module, node)
        for site in sites:
            if not isinstance(site, Attention):
                continue
            x, mask = given.get(_parameter(unit, site.input)), given.get(site.mask or "")
            projects = any(s.name.endswith("o") for s in sites if isinstance(s, Projection))
            if isinstance(x, fx.Node):
                yield AttentionSeen(node, x, site.name, site.causal, mask_behind(view, _node(mask)), projects)


def _parameter(view: View, name: str) -> str:
    """The unit's parameter that a value comes from, or ""."""
    parameter = parameter_behind(view, find(view.graph, name))
    return str(parameter.target) if parameter else ""


def _own_attentions(view: View, own: list[Site]) -> Iterator[AttentionSeen]:
    for site in own:
        if isinstance(site, Attention):
            yield AttentionSeen(
                find(view.graph, site.node), find(view.graph, site.input), site.name, site.causal, site.mask, True
            )


def _node(value: Any) -> fx.Node | None:
    return value if isinstance(value, fx.Node) else None


def _sublayer(view: View, start: fx.Node, x: fx.Node, attends: set[fx.Node], name: str) -> Sublayer | None:
    """The tensor that leads from `start` into the next residual sum."""
    sums = dataflow.downstream(view.flow, start, lambda n: joins(view, n, attends))
    if not sums:
        return None
    reached = dataflow.reached(view.flow, start)
    outputs = [a for a in operands(sums[0]) if a in reached]
    return _made(view, sums[0], outputs[0], x, name) if len(outputs) == 1 else None


def _routed(view: View, attends: set[fx.Node]) -> Sublayer | None:
    """A feed-forward that is no pair of projections: what the last residual sum takes in, if no attention made it."""
    for total in reversed(view.graph.nodes):
        output = taken_in(view, total, attends)
        if output is None:
            continue
        start = origin(view, total)
        assert start is not None
        way = dataflow.between(view.flow, start, output)
        if attends.intersection(way):
            return None
        return _made(view, total, output, _entry(view, way), "ffn")
    return None


def _entry(view: View, way: list[fx.Node]) -> fx.Node:
    """The norm that alone reads the start of a way, in another dtype perhaps; else the start."""
    node = way[0]
    while node is way[0] or dataflow.name_of(node) in CASTS:
        readers = [n for n in way if node in view.flow.predecessors(n)]
        if len(readers) != 1:
            return way[0]
        node = readers[0]
    return node if is_normed(view, node) else way[0]


def _made(view: View, total: fx.Node, output: fx.Node, x: fx.Node, name: str) -> Sublayer | None:
    """The sublayer that a sum takes in; None where its last axis holds no features, but positions."""
    if not has_features(output):
        return None
    beside = next(a for a in operands(total) if a is not output)
    follows = beside in dataflow.reached(view.flow.reverse(copy=False), output)
    residual, norm = beside if follows else stream(view, total), norm_behind(view, total)
    if residual is None and both_computed(view, total):
        return returned(name, output, x)
    flat, turned = axes(output.meta["value"])
    return Sublayer(
        name=name, output=output.name, residual=(residual or beside).name, sum=total.name,
        norm=norm.name if norm else None, input=x.name, width=width_of(output), flat=flat, turned=turned,
    )  # fmt: skip


def _feed_forward(view: View, taken: set[str], attends: set[fx.Node]) -> list[Site]:
    """ffn_gate, ffn_up, ffn_down and ffn: the largest linear that others feed; or ffn alone.

    Of several it is the last that makes the block's first result: others may be of a stream that runs beside it.
    """
    free = [n for n in view.linears() if n.name not in taken]
    downs = [node for node in reversed(free) if not _routes(view, node, attends)]
    fed = {down: feeding for down in downs if (feeding := _feeding(view, down, free))}
    fed = {down: feeding for down, feeding in fed.items() if not _is_expert(view, down, list(fed))}
    if not fed:
        whole = _routed(view, attends)
        return [whole] if whole else []
    result = _first_result(view)
    down = max(fed, key=lambda node: (view.size(node), result in dataflow.reached(view.flow, node)))
    first = read_by(view, fed[down][0].name)
    sublayer = _sublayer(view, down, first, attends, "ffn")
    return [*_named(view, down, fed[down]), *([sublayer] if sublayer else [])]


def _is_expert(view: View, down: fx.Node, others: list[fx.Node]) -> bool:
    """Whether a linear is one of a list that stand side by side, each fed by linears of its own."""
    behind, before = dataflow.reached(view.flow, down), dataflow.reached(view.flow.reverse(copy=False), down)
    beside = [other for other in others if other not in behind | before]
    return any(in_one_list(view.module, str(down.target), str(other.target)) for other in beside)


def _routes(view: View, node: fx.Node, attends: set[fx.Node]) -> bool:
    """Whether what a linear makes passes experts on its way into the residual: it says which of them, or how much."""
    sums = dataflow.downstream(view.flow, node, lambda n: joins(view, n, attends))
    way = dataflow.between(view.flow, node, sums[0])[1:-1] if sums else []
    return any(n.op == "call_module" and not view.is_linear(n) and computes(view, [n]) for n in way)


def _first_result(view: View) -> fx.Node | None:
    """What a block returns, the first of several."""
    result = next(reversed(view.graph.nodes)).args[0]
    while isinstance(result, (tuple, list)) and result:
        result = result[0]
    return result if isinstance(result, fx.Node) else None


def _feeding(view: View, down: fx.Node, free: list[fx.Node]) -> list[fx.Node]:
    """The linears that feed another one, where nothing else does."""
    feeding = dataflow.upstream(view.flow, down, lambda n: view.is_linear(n) or adds_streams(view, n))
    return feeding if all(n in free for n in feeding) else []


def _named(view: View, down: fx.Node, linears: list[fx.Node]) -> list[Projection]:
    """up and down; or gate, up and down, where the product of two branches feeds down.

    The product of two branches of one projection is an activation of it, written out.
    """
    last = replace(projection(view, down, [down]), name="ffn_down")
    makes = dataflow.upstream(view.flow, down, lambda n: n in linears or _is_product(view, n, linears))
    products = [n for n in makes if n not in linears]
    only = [replace(projection(view, linears[0], [linears[0]]), name="ffn_up"), last]
    if not products:
        return only
    branches = [a for a in products[0].args if isinstance(a, fx.Node)]
    ways = [_way(view, branch, linears) for branch in branches]
    active = [max(map(activity, way[1:]), default=0) for way in ways]  # an activation marks the gate
    gate, up = reversed(ways) if active[0] < active[1] else ways
    named = [replace(projection(view, way[0], way), name=name) for way, name in ((gate, "ffn_gate"), (up, "ffn_up"))]
    return only if len({(part.module, part.rows) for part in named}) == 1 else [*named, last]


def _is_product(view: View, node: fx.Node, linears: list[fx.Node]) -> bool:
    """Whether a node multiplies two branches that linears make."""
    made = [a for a in node.args if isinstance(a, fx.Node) and _makers(view, a, linears)]
    return node.target in MULTIPLIES and len(made) == 2


def _makers(view: View, end: fx.Node, linears: list[fx.Node]) -> list[fx.Node]:
    """Those of some linears that come last before a value, or the value itself."""
    return [end] if end in linears else dataflow.upstream(view.flow, end, lambda n: n in linears)


def _way(view: View, end: fx.Node, linears: list[fx.Node]) -> list[fx.Node]:
    """A branch of a gated feed-forward, from its linear on."""
    return dataflow.between(view.flow, _makers(view, end, linears)[0], end)
