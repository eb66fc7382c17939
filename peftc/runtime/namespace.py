"""Emitted source as a module that Python knows: importable by its name, readable by `inspect`."""

from __future__ import annotations

import hashlib
import sys
from contextlib import ExitStack
from importlib.abc import ExecutionLoader
from importlib.util import module_from_spec, spec_from_loader
from types import ModuleType


class Emitted(ExecutionLoader):
    """A loader of source text that peftc wrote."""

    def __init__(self, text: str) -> None:
        self.text = text

    def get_source(self, fullname: str) -> str:
        return self.text

    def get_filename(self, fullname: str) -> str:
        return f"{fullname}.py"

    def is_package(self, fullname: str) -> bool:
        return False


def module_of(name: str, text: str) -> ModuleType:
    """The module of an emitted text, one per distinct text.  ImportError where its source guard refuses."""
    unique = f"peftc_emitted_{hashlib.sha256(text.encode()).hexdigest()[:16]}.{name}".replace(".", "_")
    if unique in sys.modules:
        return sys.modules[unique]
    spec = spec_from_loader(unique, Emitted(text), origin=f"{unique}.py")
    assert spec is not None and spec.loader is not None
    spec.has_location = True
    module = module_from_spec(spec)
    with ExitStack() as undone:
        sys.modules[unique] = module
        undone.callback(sys.modules.pop, unique)
        spec.loader.exec_module(module)
        undone.pop_all()
    return module
