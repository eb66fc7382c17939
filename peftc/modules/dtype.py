"""The dtype rule of everything that is added to a base."""

import torch


def added(x: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    """x + delta in the wider of their dtypes, as x's dtype."""
    return (x + delta).to(x.dtype)
