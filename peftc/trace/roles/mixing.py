"""What mixes positions in a block that does not attend: it has a part in the cache, where there is one."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence

from torch import fx

from peftc.graph import dataflow
from peftc.trace.record.nested import is_plain
from peftc.trace.record.observed import Call
from peftc.trace.roles.residual import origin, taken_in
from peftc.trace.roles.views import View


def caches(calls: Iterable[Call]) -> frozenset[str]:
    """The parameters and further keywords that are given a cache: no tensor, and no number."""
    given = (item for call in calls for recorded in call for item in {**recorded.extra, **recorded.named}.items())
    return frozenset(name for name, value in given if not is_plain(value))


def mixing(view: View, kept: frozenset[str]) -> set[fx.Node]:
    """All that leads to an output which joins the residual stream and was made by way of a cache."""
    ways = [way for total in view.graph.nodes for way in _way(view, total)]
    states = _states(view, kept)
    mixed = [way for way in ways if any(states.intersection((n, *view.flow.predecessors(n))) for n in way)]
    return {node for way in mixed for node in way}


def _way(view: View, total: fx.Node) -> Sequence[list[fx.Node]]:
    """What lies between a residual sum's origin and what it takes in."""
    output = taken_in(view, total)
    start = origin(view, total) if output is not None else None
    return [dataflow.between(view.flow, start, output)[1:]] if output is not None and start is not None else []


def _states(view: View, kept: frozenset[str]) -> set[fx.Node]:
    """What is read out of a cache or goes into one, and what is made of that alone."""
    handles = {n for n in view.graph.nodes if n.op == "placeholder" and (n.target in kept or _has(n, kept))}
    states: set[fx.Node] = set()
    for node in view.graph.nodes:
        reads = handles.intersection(node.all_input_nodes) if not _is_other(node, kept) else ()
        if reads and not dataflow.holds_tensor(node):
            handles.add(node)
        sources = dataflow.sources(node)
        if (reads and dataflow.holds_tensor(node)) or (sources and states.issuperset(sources)):
            states.add(node)
    return states


def _has(parameter: fx.Node, kept: frozenset[str]) -> bool:
    """Whether further keywords have a cache among them."""
    value = parameter.meta["value"][0]
    return isinstance(value, dict) and not kept.isdisjoint(value)


def _is_other(node: fx.Node, kept: frozenset[str]) -> bool:
    """Whether a node reads something out of further keywords that is no cache."""
    source = node.args[0] if node.target is operator.getitem else None
    return (
        isinstance(source, fx.Node) and source.op == "placeholder" and _has(source, kept) and node.args[1] not in kept
    )
