"""Low-rank deltas of a linear map and of an embedding table."""

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from peftc.modules.draw import Draw


class LoRA(nn.Module):
    """x -> scale B A x, zero at initialisation.  Hu et al. 2021, arXiv:2106.09685.

    x (..., inputs) -> (..., outputs); A (rank, inputs), B (outputs, rank).  Dropout acts on x.
    """

    def __init__(self, inputs: int, outputs: int, rank: int, scale: float = 1.0, dropout: float = 0.0) -> None:
        super().__init__()
        self.scale = scale
        self.dropout = dropout
        self.A = nn.Parameter(torch.empty(rank, inputs))
        self.B = nn.Parameter(torch.empty(outputs, rank))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.dropout(x.to(self.A.dtype), self.dropout, self.training)
        return self.scale * nn.functional.linear(nn.functional.linear(x, self.A), self.B)

    def initial(self, name: str, draw: "Draw") -> torch.Tensor:
        return draw.uniform(1 / math.sqrt(self.A.shape[1])) if name == "A" else draw.zeros()


class LoRAEmbedding(nn.Module):
    """ids -> scale B A[ids], zero at initialisation.  Hu et al. 2021, arXiv:2106.09685.

    ids (...) -> (..., width); A (count, rank), B (width, rank).  Ids that joined the table later have no delta.
    """

    def __init__(self, count: int, width: int, rank: int, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.A = nn.Parameter(torch.empty(count, rank))
        self.B = nn.Parameter(torch.empty(width, rank))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        known = ids < self.A.shape[0]
        rows = nn.functional.embedding(ids * known, self.A) * known.unsqueeze(-1)
        return self.scale * nn.functional.linear(rows, self.B)

    def initial(self, name: str, draw: "Draw") -> torch.Tensor:
        return draw.zeros() if name == "A" else draw.normal(1.0)
