"""One call of a module on numbers: its outputs, its gradients, and what trains in it moved off its first values."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from peftc.runtime.examples import Filler
from peftc.trace.record.calls import Recorded
from peftc.trace.record.nested import tensors_in


def run(module: nn.Module, call: Recorded, fill: Filler, every: bool = True) -> tuple[Any, Any]:
    """Outputs, and the gradients of the parameters (of every one, or of those that ask for one), of one call."""
    module.zero_grad(set_to_none=True)
    if every:
        module.requires_grad_(True)
    found = outputs(module, call, fill)
    _backward(tensors_in(found))
    return found, [p.grad for p in module.parameters() if p.grad is not None]


def outputs(module: nn.Module, call: Recorded, fill: Filler) -> Any:
    """What one call returns, on inputs that depend on the call alone, and under seeded dropout."""
    named, extra = fill(dict(call.named)), fill(dict(call.extra))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return type(module).forward(module, **named, **extra)


def attempted(base: nn.Module, call: Recorded, fill: Filler) -> tuple[Any, Any] | None:
    """What a run of the base's own module gives; None where it does not run so, as in bfloat16 or without a mask.

    Nor does a run tell anything that gives no finite number.
    """
    try:
        found = run(base, call, fill)
    except (RuntimeError, TypeError):
        return None
    floats = [t for t in tensors_in(found[0]) if t.is_floating_point()]
    return None if floats and not any(bool(t.isfinite().any()) for t in floats) else found


def _backward(tensors: Iterable[torch.Tensor]) -> None:
    total = sum((t.float() * _weights(t)).sum() for t in tensors if t.requires_grad)
    if isinstance(total, torch.Tensor):
        total.backward()


def _weights(tensor: torch.Tensor) -> torch.Tensor:
    return torch.randn(tensor.shape, generator=torch.Generator().manual_seed(tensor.dim()))


def perturb(parameter: nn.Parameter, seed: int) -> None:
    """Move a parameter off its first values; those that it had stay as they are in memory."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        by = 0.1 * torch.randn(parameter.shape, generator=generator)
        parameter.data = parameter + by.to(parameter.dtype)


def learns(parameter: nn.Parameter) -> bool:
    """Whether some entry has a gradient: neither zero nor no number."""
    return parameter.grad is not None and bool(parameter.grad.nan_to_num().ne(0).any())
