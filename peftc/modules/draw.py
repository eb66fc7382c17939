"""What a module asks its initial values of: random numbers that a seed and the parameter's path decide."""

from typing import Protocol

import torch


class Draw(Protocol):
    """The draws for one parameter, of its shape: float64 on the CPU, keyed by (seed, parameter path)."""

    def normal(self, std: float) -> torch.Tensor:
        """N(0, std)."""

    def uniform(self, bound: float) -> torch.Tensor:
        """U(-bound, bound)."""

    def zeros(self) -> torch.Tensor:
        """Zeros."""

    def ones(self) -> torch.Tensor:
        """Ones."""
