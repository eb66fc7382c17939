"""Weights that an attention returns: a prefix adds its columns to them, of which a unit around it knows nothing."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from torch import fx

from peftc.graph import dataflow
from peftc.graph.branches import assume, choose, enter, leave, lookup
from peftc.graph.sites import Attention, Site, Unit, Written, dotted
from peftc.trace.roles.views import find

HANDS_ON = (assume, enter, leave, operator.is_, operator.is_not)


def computed_with(inner: Mapping[str, Unit], around: Iterable[Unit]) -> dict[str, Unit]:
    """The attention units by path, without a place for a prefix where a unit around one computes with its weights."""
    changed: dict[Unit, Unit] = {}
    weights = {unit: tuple(_weights(unit)) for unit in dict.fromkeys(inner.values())}
    for unit in around:
        for call in unit.graph.nodes:
            own = {inner.get(dotted(path, str(call.target))) for path in unit.paths if call.op == "call_module"}
            for attention in filter(None, own):
                if any(_computes(call, index) for index in weights[attention]):
                    sites = (_without(site, unit.name) for site in attention.sites)
                    changed[attention] = replace(attention, sites=tuple(sites))
    return {path: changed.get(unit, unit) for path, unit in inner.items()}


def needs_weights(graph: fx.Graph) -> bool:
    """Whether a unit computes with what an attention of the interface returns as weights: eager alone returns any."""
    calls = (n for n in graph.nodes if n.target == "__call__" and isinstance(n.args[0], fx.Node))
    return any(call.args[0].target is lookup and _computes(call, 1) for call in calls)


def _without(site: Site, name: str) -> Site:
    if not isinstance(site, Attention) or isinstance(site.written, str):
        return site
    return replace(site, written=f"returns its weights, and {name} computes with them")


def _weights(unit: Unit) -> Iterator[int]:
    """Which of the values that a unit returns are weights of its attentions."""
    returned, flow = unit.graph.output_node().args[0], dataflow.flow(unit.graph)
    made = {node for site in unit.sites if isinstance(site, Attention) for node in _made(unit.graph, flow, site)}
    if isinstance(returned, (tuple, list)):
        yield from (index for index, value in enumerate(returned) if value in made)


def _made(graph: fx.Graph, flow: dataflow.Flow, site: Attention) -> set[fx.Node]:
    """What is made of an attention's weights, but not of its result."""
    node = find(graph, site.node)
    if isinstance(site.written, Written):
        return dataflow.reached(flow, find(graph, site.written.softmax)) - dataflow.reached(flow, node)
    items = [n for n in node.users if n.target is operator.getitem and n.args[1] == 1]
    return set[fx.Node]().union(*(dataflow.reached(flow, item) for item in items))


def _computes(call: fx.Node, index: int) -> bool:
    """Whether something is done with one of the values that a call returns, beside handing it on."""
    held = [n for n in call.users if n.target is operator.getitem and n.args[1] == index]
    for node in held:
        held += [user for user in node.users if user.target is choose and user not in held]
    users = {user for node in held for user in node.users}
    return any(user.op != "output" and user.target not in (*HANDS_ON, choose) for user in users)
