"""What a node is to an attention in the module's own words: a product, a softmax."""

from __future__ import annotations

import torch
from torch import fx, nn

from peftc.graph import dataflow
from peftc.graph.branches import choose
from peftc.trace.roles.views import View

PRODUCTS = frozenset({"matmul", "bmm", "baddbmm", "einsum", "__matmul__"})
AFFINE = frozenset({"to", "float", "type_as", "add", "sub", "mul", "truediv"})
BOUNDS = frozenset({"clamp", "clip"})


def is_product(view: View, node: fx.Node) -> bool:
    """A matrix product, by a function or by a module that does nothing else; or one in each of two branches."""
    if node.op == "call_module":
        return _multiplies(view, node)
    if node.target is choose:
        return all(isinstance(a, fx.Node) and a.target is not choose and is_product(view, a) for a in node.args[1:])
    return dataflow.name_of(node) in PRODUCTS


def is_softmax(view: View, node: fx.Node) -> bool:
    """A softmax over scores of (batch, heads, queries, keys): batch and heads may share an axis, windows have one."""
    value = dataflow.example(node)
    return is_any_softmax(view, node) and isinstance(value, torch.Tensor) and value.dim() in (3, 4, 5)


def is_any_softmax(view: View, node: fx.Node) -> bool:
    """A softmax, by a function or by torch's own module."""
    module = view.called(node)
    return isinstance(module, nn.Softmax) if module else dataflow.name_of(node) == "softmax"


def weighs_no_keys(view: View) -> bool:
    """Whether each softmax of a module, which has one, is of numbers that no product of two tensors makes.

    Such are weights of streams or of experts.
    """
    back = view.flow.reverse(copy=False)
    weighed = [n for n in view.graph.nodes if is_any_softmax(view, n)]
    return bool(weighed) and not any(is_product(view, n) for s in weighed for n in dataflow.reached(back, s))


def over_keys(view: View, node: fx.Node) -> bool:
    """Whether a softmax is over the last axis."""
    module = view.called(node)
    dim = module.dim if isinstance(module, nn.Softmax) else node.kwargs.get("dim", *node.args[1:2])
    return dim in (-1, node.meta["value"][0].dim() - 1)


def activity(node: fx.Node) -> int:
    """0 for what moves numbers, or shifts and scales them; 1 for what bounds them; 2 for any other activation."""
    affine = dataflow.name_of(node) in AFFINE and len(dataflow.tensors(node)) == 1
    return 0 if affine or dataflow.is_move(node) else 1 if dataflow.name_of(node) in BOUNDS else 2


def averages(node: fx.Node) -> bool:
    """Whether a node is a mean over one axis, which is not that of the keys."""
    axis, source = node.kwargs.get("dim", *node.args[1:2]), dataflow.example(node.args[0])
    return dataflow.name_of(node) == "mean" and isinstance(axis, int) and axis % source.dim() != source.dim() - 1


def _multiplies(view: View, node: fx.Node) -> bool:
    """Whether a childless module without parameters is the matrix product of its two arguments."""
    module = view.called(node)
    if module is None or len(node.args) != 2 or next(module.parameters(), None) is not None or any(module.children()):
        return False
    shapes = [a.meta["value"][0].shape for a in dataflow.tensors(node)]
    if len(shapes) != 2 or any(len(shape) not in (3, 4) for shape in shapes) or shapes[0][-1] != shapes[1][-2]:
        return False
    one, other = (torch.linspace(-1, 1, shape.numel(), device="cpu").view(shape) for shape in shapes)
    return torch.allclose(module(one, other), torch.matmul(one, other))
