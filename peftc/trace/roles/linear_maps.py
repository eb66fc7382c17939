"""Whether a module maps vectors by its matrix, and which way round that is: by what a copy makes of numbers."""

from __future__ import annotations

import torch
from torch import nn

from peftc.trace.record.feeds import FAILURES
from peftc.trace.record.meta import LARGEST, real_copy


def is_transposed(module: nn.Module, source: torch.Tensor) -> bool | None:
    """Whether a linear map's matrix is (inputs, outputs); None for what is no linear map by its matrix."""
    if type(module) is nn.Linear:
        return False
    if not source.is_floating_point() or sum(p.numel() for p in module.parameters()) > LARGEST:
        return None
    draw = torch.Generator().manual_seed(0)
    x = torch.empty(source.shape, device="cpu").normal_(generator=draw)
    real = _real(module, draw)
    made, offset = _answer(real, x), _answer(real, torch.zeros_like(x))
    if made is None or offset is None:
        return None
    weight = real.get_parameter("weight").detach()
    ways = ((turned, matrix) for turned, matrix in ((False, weight.T), (True, weight)) if len(matrix) == x.shape[-1])
    return next((turned for turned, matrix in ways if _is_close(made - offset, x @ matrix)), None)


def _is_close(made: torch.Tensor, product: torch.Tensor) -> bool:
    return made.shape == product.shape and torch.allclose(made, product, rtol=1e-3, atol=1e-3)


def _real(module: nn.Module, draw: torch.Generator) -> nn.Module:
    """A copy with random numbers."""

    def number(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_floating_point():
            return torch.zeros_like(tensor)
        return torch.empty(tensor.shape, device="cpu").normal_(generator=draw)

    return real_copy(module, number).eval()


def _answer(module: nn.Module, x: torch.Tensor) -> torch.Tensor | None:
    try:
        with torch.no_grad(), torch.device("cpu"):
            made = module(x)
    except FAILURES:
        return None
    return made if isinstance(made, torch.Tensor) else None
