"""Sublayers whose residual lies outside their unit, or in a unit inside it: what they return is what is added."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from torch import fx, nn

from peftc.graph import dataflow
from peftc.graph.sites import Projection, Site, Sublayer
from peftc.trace.roles.norms import is_normed
from peftc.trace.roles.residual import adds_streams, computes, operands
from peftc.trace.roles.views import View, axes, find, has_features, read_by, width_of
from peftc.trace.tracer.values import named


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
            yield returned("ffn", next(iter(given.values())), x)


def ends(
    view: View, maps: list[Projection], attends: set[fx.Node], inner: Mapping[str, tuple[View, list[Site]]]
) -> tuple[fx.Node, fx.Node] | None:
    """Where a feed-forward without a sum makes its output, and what it reads: its projections, or a module kept whole.

    Without projections it is the last module that computes with what the block's attention makes.
    """
    if maps:
        return find(view.graph, maps[-1].node), read_by(view, maps[0].node)
    attended = {node for attention in attends for node in dataflow.reached(view.flow, attention)} - attends
    whole = (n for n in reversed(view.graph.nodes) if n in attended and n.op == "call_module" and n.target not in inner)
    last = next((n for n in whole if not view.is_linear(n) and computes(view, [n]) and not is_normed(view, n)), None)
    return (last, dataflow.tensors(last)[0]) if last else None


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
    signature = inspect.signature(type(module).forward)
    return signature.bind_partial(module, *node.args, **named(node.kwargs)).arguments
