"""Learnt keys and values in the layout that an attention has its own in."""

import torch


def prefix_like(table: torch.Tensor, states: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
    """Keys or values (length, heads * width) as (batch, heads, length, width), times a gate.

    `states` (batch, heads, ..., width) say the batch and the width.
    """
    table = table.to(states.device).unflatten(-1, (-1, states.shape[-1])).transpose(0, 1)
    table = table if gate is None else table * gate.reshape(-1, 1, 1, 1)
    return table.to(states.dtype).expand(states.shape[0], -1, -1, -1)


def folded_prefix(table: torch.Tensor, states: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
    """Keys or values (length, heads * width) as (batch * heads, length, width), like `states`, times a gate."""
    heads = table.shape[-1] // states.shape[-1]
    return prefix_like(table, states.unflatten(0, (-1, heads)), gate).flatten(0, 1)


def windowed_prefix(table: torch.Tensor, states: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
    """Keys or values (length, heads * width) as (batch, heads, windows, length, width): the same for each window."""
    return prefix_like(table, states, gate).unsqueeze(2).expand(-1, -1, states.shape[2], -1, -1)
