"""Where something joins the residual stream: sums, one side of which is what the other was made from."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterable, Mapping
from types import FunctionType
from typing import Any

import torch
from torch import fx

from peftc.graph import dataflow
from peftc.graph.branches import choose
from peftc.trace.record.feeds import FAILURES
from peftc.trace.record.meta import real_copy
from peftc.trace.roles.products import PRODUCTS
from peftc.trace.roles.views import View, is_flat

ADDS = (operator.add, operator.iadd, torch.add)
MATRICES = PRODUCTS | {"linear"}


def operands(node: fx.Node) -> list[fx.Node]:
    """The tensors among a node's arguments."""
    return [a for a in node.args if isinstance(a, fx.Node) and dataflow.holds_tensor(a)]


def adds_streams(view: View, node: fx.Node) -> bool:
    """Whether a node adds two tensors of one shape, (batch, length, width) or more."""
    return _adds(view, node) and not is_flat(node)


def joins(view: View, node: fx.Node, attends: set[fx.Node]) -> bool:
    """Whether a sum adds a sublayer's output to the residual, or to an attention's; not two parts of one sublayer.

    Where batch and length are one axis it has to be the residual itself.
    """
    if not _adds(view, node):
        return False
    if is_flat(node):
        return taken_in(view, node) is not None
    ways = _ways(view, node)
    made = [computes(view, way) and not _mixes_streams(view, node, way[-1]) for way in ways]
    return not ways or (any(made) and (not all(made) or any(attends.intersection(way) for way in ways)))


def taken_in(view: View, node: fx.Node, attends: Collection[fx.Node] = ()) -> fx.Node | None:
    """The side of a residual sum that was computed from the other one, or from what that is but for a scale; else None.

    Where both sides were computed, as beside an attention of the same input, it is the one that no attention made.
    """
    ways = _ways(view, node) if _adds(view, node) else []
    made = [way for way in ways if computes(view, way) and not _mixes_streams(view, node, way[-1])]
    if len(made) == 2:
        made = [way for way in made if not set(attends).intersection(way)] if attends else []
    return made[0][-1] if len(made) == 1 else None


def _mixes_streams(view: View, total: fx.Node, side: fx.Node) -> bool:
    """Whether a side only mixes streams: a matrix times what the other side is made from, (…, streams, width)."""
    if dataflow.name_of(side) not in PRODUCTS - {"einsum"} or side.meta["value"][0].dim() < 4:
        return False
    before, others = view.flow.reverse(copy=False), [other for other in operands(total) if other is not side]
    return any(side.args[-1] in dataflow.reached(before, other) for other in others)


def origin(view: View, total: fx.Node) -> fx.Node | None:
    """The last value that both sides of a sum are made from."""
    behind = [dataflow.reached(view.flow.reverse(copy=False), side) for side in operands(total)]
    return max(behind[0] & behind[1], default=None)


def stream(view: View, total: fx.Node) -> fx.Node | None:
    """The term of a sum that all its other terms are made from, whatever is added to what first; None without one."""
    while len(further := dataflow.downstream(view.flow, total, lambda n: adds_streams(view, n))) == 1:
        if computes(view, dataflow.between(view.flow, total, further[0])[1:-1]):
            break
        total = further[0]
    before, terms = view.flow.reverse(copy=False), operands(total)
    while True:
        behind = {term: dataflow.reached(before, term) for term in terms}
        first = [term for term in terms if all(term in reached for reached in behind.values())]
        apart = [term for term in terms if adds_streams(view, term)]
        if first or not apart:
            return next(iter(first), None)
        terms = [term for term in terms if term is not apart[-1]] + operands(apart[-1])


def both_computed(view: View, total: fx.Node) -> bool:
    """Whether a sum is of two sublayers side by side, and the value that both are made from is added outside."""
    ways = _ways(view, total)
    return len(ways) == 2 and all(computes(view, way) and not _mixes_streams(view, total, way[-1]) for way in ways)


def computes(view: View, way: Iterable[fx.Node]) -> bool:
    """Whether a way passes a matrix: a product, or a module that has one."""
    modules = (view.owner(node) for node in way)
    matrices = any(p.dim() > 1 for module in modules if module for p in module.parameters())
    return matrices or any(dataflow.name_of(n) in MATRICES for n in way if n.op in ("call_function", "call_method"))


def _adds(view: View, node: fx.Node) -> bool:
    sides = operands(node)
    if len(sides) != 2 or not _streams(*(side.meta["value"][0] for side in sides)):
        return False
    floats = all(side.meta["value"][0].is_floating_point() for side in sides)
    return _is_sum(node) or (floats and dataflow.tensors(node) == sides and _mixes(view, node))


def _is_sum(node: fx.Node) -> bool:
    return node.target in ADDS or (node.op == "call_method" and node.target == "add")


def _mixes(view: View, node: fx.Node) -> bool:
    """Whether a model's own function or module of two tensors is alpha a + beta b + c, by what it makes of numbers.

    Each of the three has a number for each feature, or one for all; those of alpha and beta are not zero.
    """
    sides, (shape, *_) = operands(node), (side.meta["value"][0].shape for side in operands(node))
    up, down = (torch.linspace(*ends, shape.numel(), device="cpu").view(shape) for ends in ((-1, 1), (2, 1)))
    one, zero = torch.ones_like(up), torch.zeros_like(up)
    made = [_of(view, node, dict(zip(sides, pair, strict=True))) for pair in ((zero, zero), (one, zero), (zero, one))]
    both = _of(view, node, dict(zip(sides, (up, down), strict=True)))
    if not all(isinstance(x, torch.Tensor) and x.shape == shape for x in (both, *made)):
        return False
    rest, alpha, beta = made[0], made[1] - made[0], made[2] - made[0]
    alike = all(torch.allclose(x, x.flatten(0, -2)[0]) for x in (rest, alpha, beta))
    return alike and bool((alpha * beta).all()) and torch.allclose(both, alpha * up + beta * down + rest)


def _of(view: View, node: fx.Node, held: Mapping[fx.Node, torch.Tensor]) -> Any:
    """What a node makes of other numbers: a function of the model's own, or a copy of a module of vectors alone."""
    if isinstance(node.target, FunctionType) and node.target is not choose:
        return _ran(lambda: dataflow.recomputed(node, held))
    module = view.called(node)
    if module is None or node.kwargs or any(module.children()) or any(p.dim() > 1 for p in module.parameters()):
        return None
    real = real_copy(module, _rising).eval()
    return _ran(lambda: real(*fx.node.map_arg(node.args, lambda n: held.get(n, n.meta["value"][0]))))


def _rising(tensor: torch.Tensor) -> torch.Tensor:
    if not tensor.is_floating_point():
        return torch.zeros_like(tensor)
    return torch.linspace(1, 2, tensor.numel(), device="cpu").view(tensor.shape)


def _ran(compute: Callable[[], Any]) -> Any:
    """What the model's own code makes of numbers; None where it does not take them."""
    try:
        with torch.no_grad():
            return compute()
    except FAILURES:
        return None


def _streams(first: Any, second: Any) -> bool:
    if not isinstance(first, torch.Tensor) or not isinstance(second, torch.Tensor):
        return False
    return first.shape == second.shape and first.dim() >= 2


def _ways(view: View, total: fx.Node) -> list[list[fx.Node]]:
    """What lies between the origin of a sum and each of its sides."""
    start = origin(view, total)
    if start is None:
        return []
    return [dataflow.between(view.flow, start, side)[1:] or [start] for side in operands(total)]
