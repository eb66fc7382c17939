"""Learnt scales of activations."""

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from peftc.modules.draw import Draw


class IA3(nn.Module):
    """x -> x * l, the identity at initialisation; gated, x * (1 + g (l - 1)).  Liu et al. 2022, arXiv:2205.05638.

    x (..., width) -> the same shape and dtype; l (width), ones at first.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.l = nn.Parameter(torch.empty(width))

    def forward(self, x: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
        scale = self.l if gate is None else 1 + gate * (self.l - 1)
        return (x * scale).to(x.dtype)

    def initial(self, name: str, draw: "Draw") -> torch.Tensor:
        return draw.ones()
