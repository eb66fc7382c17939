"""Norms: by their class's own word, or by what they make of numbers, to which another scale is nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from peftc.trace.record.feeds import FAILURES
from peftc.trace.record.meta import real_copy

LARGER = 8
GAINS = 1 << 16  # numbers that the gains of a norm of several axes may be: a matrix has more


def is_norm(module: nn.Module | None) -> bool:
    """A childless module that normalises: its class says so, or its numbers do.

    Its parameters are vectors, or of several axes, such as heads and their widths; then its numbers decide.
    """
    if module is None or any(True for _ in module.children()) or isinstance(module, nn.Linear | nn.Embedding):
        return False
    vectors = all(p.dim() < 2 for p in module.parameters())
    if vectors and "norm" in type(module).__name__.lower():
        return True
    widest = max(module.parameters(), key=torch.Tensor.numel, default=None)
    if widest is None or not 1 < widest.numel() <= (widest.numel() if vectors else GAINS):
        return False
    return normalises(lambda x: real_copy(module, ones).eval()(x), widest.shape)


def normalises(compute: Callable[[torch.Tensor], object], shape: Sequence[int]) -> bool:
    """Whether something gives each position the same numbers at any scale, and not but a few of them."""
    x = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(0), device="cpu")
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


def ones(tensor: torch.Tensor) -> torch.Tensor:
    return torch.ones(tensor.shape, dtype=tensor.dtype, device="cpu")
