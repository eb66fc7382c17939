"""The attention that a config asks for, and another one in its place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


def implementation(module: nn.Module) -> str | None:
    """The attention that a module's config asks for, or None where it has no config."""
    return getattr(getattr(module, "config", None), "_attn_implementation", None)


@contextmanager
def attending_by(module: nn.Module, attention: str | None) -> Iterator[None]:
    """The module's config with another attention inside the block."""
    config: Any = getattr(module, "config", None)
    own = implementation(module)
    if attention in (None, own):
        yield
        return
    config._attn_implementation = attention
    try:
        yield
    finally:
        config._attn_implementation = own
