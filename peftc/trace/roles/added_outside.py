"""Sublayers whose residual lies outside their unit, or in a unit inside it: what they return is what is added."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from torch import fx, nn

from peftc.graph import dataflow
from peftc.graph.sites import Projection, Site, Sublayer
from peftc.trace.roles.residual import adds_streams, operands
from peftc.trace.roles.views import View, axes, find, has_features, read_by, width_of


def as_returned(view: View, projections: list[Projection]) -> list[Site]:
    """The projections of a feed-forward, and as its output what the view returns; none where that has another shape."""
    (end,) = (n.args[0] for n in view.graph.nodes if n.op == "output")
    if not projections or not isinstance(end, fx.Node):
        return []
    x = read_by(view, projections[0].node)
    if x.meta["value"][0].shape != end.meta["value"][0].shape or not has_features(end):
        return []
    return [*projections, returned("ffn", end, x)]


def added_within(
    view: View, inner: Mapping[str, tuple[View, list[Site]]], projections: list[Projection]
) -> Iterator[Sublayer]:
    """What a feed-forward hands to a unit inside its block, which adds it to another of its arguments."""
    down, x = find(view.graph, projections[-1].node), read_by(view, projections[0].node)
    made = dataflow.reached(view.flow, down)
    for call in dataflow.downstream(view.flow, down, lambda n: n.op == "call_module" and str(n.target) in inner):
        unit, _ = inner[str(call.target)]
        handed = {name: value for name, value in bound(unit.module, call).items() if value in made}
        given = {n: handed[str(n.target)] for n in unit.graph.nodes if n.op == "placeholder" and n.target in handed}
        sums = [total for node in given for total in unit.flow.successors(node) if adds_streams(unit, total)]
        if len(given) == 1 and any(all(a.op == "placeholder" for a in operands(total)) for total in sums):
            yield returned("ffn", next(iter(given.values())), x)


def returned(name: str, output: fx.Node, x: fx.Node) -> Sublayer:
    """A sublayer whose residual and sum lie outside; its x is as wide as what it makes."""
    shape = output.meta["value"][0].shape
    while getattr(dataflow.example(x), "shape", None) != shape and len(x.all_input_nodes) == 1:
        x = x.all_input_nodes[0]
    flat, turned = axes(output.meta["value"])
    return Sublayer(
        name=name, output=output.name, residual=None, sum=None, norm=None, input=x.name, width=width_of(output),
        flat=flat, turned=turned,
    )  # fmt: skip


def bound(module: nn.Module, node: fx.Node) -> Mapping[str, Any]:
    """What a call of a module gives each of its forward's parameters."""
    kwargs = {k: v for k, v in node.kwargs.items() if k != "**"}
    return inspect.signature(type(module).forward).bind_partial(module, *node.args, **kwargs).arguments
