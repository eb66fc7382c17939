"""Where something joins the residual stream: sums, one side of which is what the other was made from."""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable
from types import FunctionType

import torch
from torch import fx

from peftc.graph import dataflow
from peftc.graph.branches import choose
from peftc.trace.views import View, is_flat

ADDS = (operator.add, operator.iadd, torch.add)
PRODUCTS = frozenset({"matmul", "bmm", "baddbmm", "einsum", "linear", "__matmul__"})


def operands(node: fx.Node) -> list[fx.Node]:
    """The tensors among a node's arguments."""
    return [a for a in node.args if isinstance(a, fx.Node) and dataflow.holds_tensor(a)]


def adds_streams(node: fx.Node) -> bool:
    """Whether a node adds two tensors of one shape, (batch, length, width) or more."""
    return _adds(node) and not is_flat(node)


def joins(view: View, node: fx.Node, attends: set[fx.Node]) -> bool:
    """Whether a sum takes a sublayer's output in: into the residual, or next to an attention's, not parts of one.

    Where batch and length are one axis it has to be the residual itself.
    """
    if not _adds(node):
        return False
    if is_flat(node):
        return taken_in(view, node) is not None
    ways = _ways(view, node)
    made = [computes(view, way) for way in ways]
    return not ways or (any(made) and (not all(made) or any(attends.intersection(way) for way in ways)))


def taken_in(view: View, node: fx.Node, attends: Collection[fx.Node] = ()) -> fx.Node | None:
    """The side of a residual sum that was computed from the other one, or from what the other is but for a scale.

    Where an attention joined the stream from the same input before, it is the side that no attention made.
    """
    ways = _ways(view, node) if _adds(node) else []
    made = [way for way in ways if computes(view, way)]
    if len(made) == 2:
        made = [way for way in made if not set(attends).intersection(way)] if attends else []
    return made[0][-1] if len(made) == 1 else None


def origin(view: View, total: fx.Node) -> fx.Node | None:
    """The last value that both sides of a sum are made from."""
    behind = [dataflow.reached(view.flow.reverse(copy=False), side) for side in operands(total)]
    return max(behind[0] & behind[1], default=None)


def computes(view: View, way: Iterable[fx.Node]) -> bool:
    """Whether a way passes a matrix: a product, or a module that has one."""
    modules = (view.owner(node) for node in way)
    matrices = any(p.dim() > 1 for module in modules if module for p in module.parameters())
    return matrices or any(dataflow.name_of(n) in PRODUCTS for n in way if n.op in ("call_function", "call_method"))


def _adds(node: fx.Node) -> bool:
    sides = operands(node)
    called = isinstance(node.target, FunctionType) and node.target is not choose
    if len(sides) != 2 or not (node.target in ADDS or called):
        return False
    first, second = (side.meta["value"][0] for side in sides)
    streams = isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor) and _streams(first, second)
    return streams and (node.target in ADDS or _mixes(node, first, second))


def _mixes(node: fx.Node, first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether a model's own function of two tensors is alpha a + beta b, by what it makes of numbers."""
    sides, shape = operands(node), first.shape
    if dataflow.tensors(node) != sides or not (first.is_floating_point() and second.is_floating_point()):
        return False
    up, down = (torch.linspace(*ends, shape.numel(), device="cpu").view(shape) for ends in ((-1, 1), (2, 1)))
    one, zero = torch.ones_like(up), torch.zeros_like(up)
    pairs = ((up, down), (one, zero), (zero, one))
    both, alpha, beta = (dataflow.moved(node, dict(zip(sides, pair, strict=True))) for pair in pairs)
    if not all(isinstance(made, torch.Tensor) and made.shape == shape for made in (both, alpha, beta)):
        return False
    scaled = all(len(numbers := side.unique()) == 1 and bool(numbers.all()) for side in (alpha, beta))
    return scaled and torch.allclose(both, alpha * up + beta * down)


def _streams(first: torch.Tensor, second: torch.Tensor) -> bool:
    return bool(first.shape == second.shape) and first.dim() >= 2


def _ways(view: View, total: fx.Node) -> list[list[fx.Node]]:
    """What lies between the origin of a sum and each of its sides."""
    start = origin(view, total)
    if start is None:
        return []
    return [dataflow.between(view.flow, start, side)[1:] or [start] for side in operands(total)]
