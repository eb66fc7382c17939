"""Models whose code asks for numbers that are in no shape: they run on the CPU, on zeros in place of their weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar
from weakref import WeakSet

import torch
from torch import nn

Found = TypeVar("Found")
Failures = tuple[type[Exception], ...]
_NUMBERED: WeakSet[nn.Module] = WeakSet()


def on_numbers(model: nn.Module, run: Callable[[], Found], failures: Failures) -> Found | None:
    """What a run gives of a model that failed without numbers: it has them from now on.

    None where it fails again, or had them before.
    """
    if model in _NUMBERED or not any(p.is_meta for p in model.parameters()):
        return None
    _NUMBERED.add(model)
    try:
        return run()
    except failures:
        _NUMBERED.discard(model)
        return None


@contextmanager
def numbered(model: nn.Module) -> Iterator[Mapping[torch.Tensor, Any]]:
    """In the block the tensors of a model that asks for numbers are zeros on the CPU; each -> what it stands for.

    Zeros, so that only the inputs decide what is recorded; those for parameters take no memory.
    """
    modules = model.modules() if model in _NUMBERED else ()
    places: list[dict[str, Any]] = [held for m in modules for held in (m._parameters, m._buffers, vars(m))]
    before = [dict(held) for held in places]
    zeros = {tensor: _zeros(tensor) for held in before for tensor in held.values() if _is_bare(tensor)}
    try:
        for held in places:
            held.update({name: zeros[tensor] for name, tensor in held.items() if _is_bare(tensor)})
        yield {zero: tensor for tensor, zero in zeros.items()}
    finally:
        for held, was in zip(places, before, strict=True):
            held.clear()
            held.update(was)


def _is_bare(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_meta


def _zeros(tensor: torch.Tensor) -> torch.Tensor:
    if not isinstance(tensor, nn.Parameter):
        return torch.zeros(tensor.shape, dtype=tensor.dtype, device="cpu")
    one = torch.zeros((), dtype=tensor.dtype, device="cpu")
    return nn.Parameter(one.expand(tensor.shape), tensor.requires_grad)
