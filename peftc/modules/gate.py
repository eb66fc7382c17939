"""Numbers between 0 and 1 that scale what a method adds."""

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from peftc.modules.draw import Draw


class SequenceGate(nn.Module):
    """x -> mean over the sequence of sigmoid(w.x + b), padding included.  Mao et al. 2022, arXiv:2110.07577.

    x (..., length, width) -> (..., 1, 1).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, width))
        self.bias = nn.Parameter(torch.empty(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = torch.sigmoid(nn.functional.linear(x.to(self.weight.dtype), self.weight, self.bias))
        return gate.mean(dim=-2, keepdim=True)

    def initial(self, name: str, draw: "Draw") -> torch.Tensor:
        return draw.normal(0.02) if name == "weight" else draw.zeros()


class MaskedGate(nn.Module):
    """x, mask -> mean over the real tokens of sigmoid(w.x + b).  After Mao et al. 2022, arXiv:2110.07577.

    x (batch, length, width) -> (batch, 1, 1).  The mask is None, (batch, keys) with nonzero for a real token, or
    (batch, heads, queries, keys), either bool or added to the scores: a token is real if any query may attend to it.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, width))
        self.bias = nn.Parameter(torch.empty(1))

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        gate = torch.sigmoid(nn.functional.linear(x.to(self.weight.dtype), self.weight, self.bias))
        if mask is None:
            return gate.mean(dim=-2, keepdim=True)
        real = self.real_tokens(mask)[:, -x.shape[1] :, None].to(gate.dtype).expand_as(gate)
        return (gate * real).sum(dim=-2, keepdim=True) / real.sum(dim=-2, keepdim=True).clamp(min=1)

    def real_tokens(self, mask: torch.Tensor) -> torch.Tensor:
        if not isinstance(mask, torch.Tensor):
            raise TypeError(
                f"a masked gate needs a mask that is a tensor, not {type(mask).__name__}: use sdpa or eager"
            )
        if mask.dim() == 2:
            return mask != 0
        attended = mask if mask.dtype == torch.bool else mask > -1000
        return attended.flatten(1, -2).any(dim=1)

    def initial(self, name: str, draw: "Draw") -> torch.Tensor:
        return draw.normal(0.02) if name == "weight" else draw.zeros()


class TokenGate(nn.Module):
    """x -> sigmoid(w.x + b) at every position, which sees no other.  x (..., length, width) -> (..., length, 1)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, width))
        self.bias = nn.Parameter(torch.empty(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(nn.functional.linear(x.to(self.weight.dtype), self.weight, self.bias))

    def initial(self, name: str, draw: "Draw") -> torch.Tensor:
        return draw.normal(0.02) if name == "weight" else draw.zeros()


class ConstantGate(nn.Module):
    """sigmoid(b), one number whatever the input, 0.5 at first.  () -> (1,): what shards a model shards no scalar."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty(1))

    def forward(self) -> torch.Tensor:
        return torch.sigmoid(self.bias)

    def initial(self, name: str, draw: "Draw") -> torch.Tensor:
        return draw.zeros()


class CentralGate(nn.Module):
    """x -> softmax over the members of the mean over the sequence of relu(W x + b).  After arXiv:2110.07577.

    x (..., length, width) -> (members, ..., 1, 1): indexing gives one member's gate.
    """

    def __init__(self, width: int, members: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(members, width))
        self.bias = nn.Parameter(torch.empty(members))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = torch.relu(nn.functional.linear(x.to(self.weight.dtype), self.weight, self.bias)).mean(dim=-2)
        return torch.softmax(scores, dim=-1).movedim(-1, 0)[..., None, None]

    def initial(self, name: str, draw: "Draw") -> torch.Tensor:
        return draw.normal(0.02) if name == "weight" else draw.zeros()
