"""Sublayers whose residual lies outside their unit, or in a unit inside it: what they return is what is added."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from torch import fx, nn

from peftc.graph import dataflow
from peftc.graph.sites import Projection, Site, Sublayer
from peftc.trace.roles.residual import adds_streams, operands
from peftc.trace.roles.views import View, axes, has_features, read_by, width_of


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
    view: View, inner: Mapping[str, tuple[View, list[Site]]], last: fx.Node, x: fx.Node
) -> Iterator[Sublayer]:
    """What a feed-forward of x, behind its last matrix, hands to a unit inside its block.

    The unit adds it to another of its arguments.
    """
    made = dataflow.reached(view.flow, last)
    for call in dataflow.downstream(view.flow, last, lambda n: n.op == "call_module" and str(n.target) in inner):
        unit, _ = inner[str(call.target)]
        handed = {k: v for k, v in bound(unit.module, call).items() if isinstance(v, fx.Node) and v in made}
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
