"""Learnt keys and values beside those of an attention in which each query reads other keys, perhaps not all."""

import torch


def prefix_scores(
    query: torch.Tensor, prefix: tuple[torch.Tensor, torch.Tensor], gate: torch.Tensor | None = None
) -> torch.Tensor:
    """query P_K' of each head, times a gate: query (batch, length, heads, width) -> (batch, length, heads, learnt)."""
    keys = prefix[0].to(query).unflatten(-1, (query.shape[-2], -1))
    scores = torch.einsum("bqhd,khd->bqhk", query, keys)
    return scores if gate is None else scores * gate.reshape(-1, 1, 1, 1)


def prefix_sum(
    weights: torch.Tensor, prefix: tuple[torch.Tensor, torch.Tensor], gate: torch.Tensor | None = None
) -> torch.Tensor:
    """What weights (batch, length, heads, learnt + others) make of P_V: (batch, length, heads, width); times a gate."""
    values = prefix[1].to(weights).unflatten(-1, (weights.shape[-2], -1))
    total = torch.einsum("bqhk,khd->bqhd", weights[..., : len(values)], values)
    return total if gate is None else total * gate.reshape(-1, 1, 1, 1)


def without_prefix(weights: torch.Tensor, prefix: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """The weights of all but the learnt keys."""
    return weights[..., len(prefix[0]) :]
