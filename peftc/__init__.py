"""Compiles a YAML spec of parameter-efficient methods into a plain Hugging Face model class."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from peftc.compiler import attach, compile, load
    from peftc.errors import PeftcError

__version__ = "0.1.0"
__all__ = ["PeftcError", "__version__", "attach", "compile", "load"]

_HOMES = dict.fromkeys(("attach", "compile", "load"), "peftc.compiler") | {"PeftcError": "peftc.errors"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
