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
    (returned,) = (n.args[0] for n in view.graph.nodes if n.op == "output")
    if not projections or not isinstance(returned, fx.Node):
        return []
    x = read_by(view, projections[0].node)
    if x.meta["value"][0].shape != returned.meta["value"][0].shape or not has_features(returned):
        return []
    return [*projections, _returned(returned, x)]


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
            yield _returned(next(iter(given.values())), x)


def _returned(output: fx.Node, x: fx.Node) -> Sublayer:
    """A feed-forward whose residual and sum lie outside."""
    flat, turned = axes(output.meta["value"])
    return Sublayer(
        name="ffn", output=output.name, residual=None, sum=None, norm=None, input=x.name, width=width_of(output),
        flat=flat, turned=turned,
    )  # fmt: skip


def bound(module: nn.Module, node: fx.Node) -> Mapping[str, Any]:
    """What a call of a module gives each of its forward's parameters."""
    kwargs = {k: v for k, v in node.kwargs.items() if k != "**"}
    return inspect.signature(type(module).forward).bind_partial(module, *node.args, **kwargs).arguments
