"""What a module holds, and what its forward sets on it."""

from __future__ import annotations

from typing import Any

from torch import nn


def held(module: nn.Module) -> dict[str, Any]:
    """Everything that a module has under a name."""
    return {**vars(module), **module._parameters, **module._buffers, **module._modules}


def restored(module: nn.Module, before: dict[str, Any]) -> list[str]:
    """The names that a forward has set on its module, which has again what it had there."""
    written = [name for name, value in held(module).items() if before.get(name, ...) is not value]
    for name in written:
        if name in before:
            setattr(module, name, before[name])
        else:
            delattr(module, name)
    return written


def is_stacked(module: nn.Module) -> bool:
    """Whether a module holds the weights of many experts in one tensor: it routes by value, by one of many kernels."""
    return any(p.dim() == 3 for p in module.parameters(recurse=False))
