"""The bottleneck module."""

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from peftc.modules.draw import Draw


class Adapter(nn.Module):
    """x -> scale (up act(down x + b) + b'), zero at initialisation.  Houlsby et al. 2019, arXiv:1902.00751.

    x (..., width) -> (..., width); down (bottleneck, width), up (width, bottleneck).  Dropout acts on the bottleneck.
    """

    def __init__(
        self, width: int, bottleneck: int, activation: str = "relu", dropout: float = 0.0, scale: float = 1.0
    ) -> None:
        super().__init__()
        self.activation = activation
        self.dropout = dropout
        self.scale = scale
        self.down = nn.Parameter(torch.empty(bottleneck, width))
        self.down_bias = nn.Parameter(torch.empty(bottleneck))
        self.up = nn.Parameter(torch.empty(width, bottleneck))
        self.up_bias = nn.Parameter(torch.empty(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.activate(nn.functional.linear(x.to(self.down.dtype), self.down, self.down_bias))
        inner = nn.functional.dropout(inner, self.dropout, self.training)
        return self.scale * nn.functional.linear(inner, self.up, self.up_bias)

    def activate(self, x: torch.Tensor) -> torch.Tensor:
        if self.activation == "gelu_tanh":
            return nn.functional.gelu(x, approximate="tanh")
        function = getattr(nn.functional, self.activation)
        return function(x)  # type: ignore[no-any-return]

    def initial(self, name: str, draw: "Draw") -> torch.Tensor:
        return draw.normal(0.02) if name == "down" else draw.zeros()
