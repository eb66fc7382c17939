"""Norms: by their class's own word, or by what they make of numbers, to which another scale is nothing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import fx, nn

from peftc.graph import dataflow
from peftc.trace.feeds import FAILURES
from peftc.trace.meta import real_copy
from peftc.trace.views import View

LARGER = 8


def is_norm(module: nn.Module | None) -> bool:
    """A childless module whose parameters are vectors and that normalises: its class says so, or its numbers do."""
    if module is None or any(True for _ in module.children()) or any(p.dim() > 1 for p in module.parameters()):
        return False
    if "norm" in type(module).__name__.lower():
        return True
    width = max((p.numel() for p in module.parameters()), default=0)
    return width > 1 and _normalises(lambda x: real_copy(module, _ones).eval()(x), width)


def is_normed(view: View, node: fx.Node) -> bool:
    """Whether a node is a call of a norm, or of a function that normalises one tensor."""
    if node.op == "call_module":
        return is_norm(view.called(node))
    source, *others = dataflow.tensors(node) or [node]
    made = dataflow.example(node)
    known = node.op == "call_function" and isinstance(made, torch.Tensor) and made.dim() > 0
    if not known or source is node or any(n.op != "get_attr" for n in others):
        return False
    weights = {other: _ones(other.meta["value"][0]) for other in others}
    return _normalises(lambda x: dataflow.moved(node, {source: x, **weights}), made.shape[-1])


def _normalises(compute: Callable[[torch.Tensor], object], width: int) -> bool:
    """Whether something gives each position the same numbers at any scale, and not but a few of them."""
    x = torch.randn(2, 3, width, generator=torch.Generator().manual_seed(0), device="cpu")
    try:
        with torch.no_grad():
            made, larger, apart = (compute(given) for given in (x, LARGER * x, x[:, 1:]))
    except FAILURES:
        return False
    if not all(isinstance(one, torch.Tensor) and one.is_floating_point() for one in (made, larger, apart)):
        return False
    assert isinstance(made, torch.Tensor) and isinstance(larger, torch.Tensor) and isinstance(apart, torch.Tensor)
    if made.shape != x.shape or made.unique().numel() < x.numel():
        return False
    return torch.allclose(made, larger, rtol=0.01, atol=0.01) and torch.allclose(made[:, 1:], apart)


def _ones(tensor: torch.Tensor) -> torch.Tensor:
    return torch.ones(tensor.shape, dtype=tensor.dtype, device="cpu")
