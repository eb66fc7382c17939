"""What a module holds, and what its forward sets on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

Held = dict[nn.Module, dict[str, Any]]


def held(module: nn.Module) -> Held:
    """Everything that a module and those in it have under a name."""
    return {m: {**vars(m), **m._parameters, **m._buffers, **m._modules} for m in module.modules()}


def restored(module: nn.Module, before: Held) -> list[str]:
    """The names that a forward has set on modules, which have again what they had there."""
    found = []
    for owner, now in held(module).items():
        was = before.get(owner, {})
        written = [name for name, value in now.items() if was.get(name, ...) is not value]
        for name in written:
            if name in was:
                setattr(owner, name, was[name])
            else:
                delattr(owner, name)
        found += written
    return found


def numbers_set(module: nn.Module, before: Held) -> Iterator[tuple[nn.Module, str, int | float]]:
    """(module, name, value) of each number that a call has set on modules."""
    for owner, now in held(module).items():
        was = before.get(owner, {})
        yield from ((owner, n, v) for n, v in now.items() if was.get(n, ...) is not v and isinstance(v, (int, float)))


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """What the block sets on the modules of a model is taken back, and its hooks; another module that it adds stays."""
    before = {module: (dict(vars(module)), dict(module._forward_hooks)) for module in model.modules()}
    try:
        yield
    finally:
        for module, (was, hooks) in before.items():
            vars(module).clear()
            vars(module).update(was)
            module._forward_hooks.clear()
            module._forward_hooks.update(hooks)


def is_stacked(module: nn.Module) -> bool:
    """Whether a module holds the weights of many experts in one tensor: it routes by value, by one of many kernels."""
    return any(p.dim() == 3 for p in module.parameters(recurse=False))
