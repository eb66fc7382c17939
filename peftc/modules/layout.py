"""Learnt keys and values in the layout that an attention has its own in."""

import torch


def prefix_like(table: torch.Tensor, states: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
    """Keys or values (length, heads * width) as (batch, heads, length, width), times a gate.

    `states` (batch, heads, ..., width) say the batch and the width; they may have batch and heads in one axis, and
    then what is returned has so, too.  With windows behind their heads, each window has the same keys or values.
    """
    table = table.to(states.device).unflatten(-1, (-1, states.shape[-1])).transpose(0, 1)
    heads = table.shape[0]
    table = table if gate is None else table * gate.reshape(-1, 1, 1, 1)
    table = table.unsqueeze(-3) if states.dim() == 5 else table
    batch = states.shape[0] if states.dim() > 3 else states.shape[0] // heads
    table = table.to(states.dtype).expand(batch, heads, *states.shape[2:-2], -1, -1)
    return table if states.dim() > 3 else table.flatten(0, 1)
