"""Learnt keys and values in the layout that an attention has its own in."""

import torch


def prefix_like(
    table: torch.Tensor,
    states: torch.Tensor,
    heads: int,
    gate: torch.Tensor | None = None,
    turned: bool = False,
) -> torch.Tensor:
    """Keys or values (length, heads * width) as (batch, heads, length, width), or as `states` have it; times a gate.

    States may have batch and heads in one axis; turned, they end in (width, length).
    """
    table = table.to(states.device).unflatten(-1, (heads, -1)).transpose(0, 1)[None]
    table = table if gate is None else table * gate.reshape(-1, 1, 1, 1)
    batch = states.shape[0] if states.dim() == 4 else states.shape[0] // heads
    table = table.to(states.dtype).expand(batch, -1, -1, -1)
    table = table.transpose(-1, -2) if turned else table
    return table.reshape(*states.shape[:-2], *table.shape[-2:])
