"""Where an argument that is None or a bool was read: `self.window`, seen in the source of the call that runs."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from types import CodeType, FrameType
from typing import Any

from torch import nn

from peftc.graph.branches import attribute, unlifted
from peftc.trace.record.source import expression


def absent(frame: FrameType, keywords: Mapping[str, Any], paths: Mapping[nn.Module, str]) -> dict[str, str]:
    """keyword -> source, of those that are None or a bool because an attribute of one of the unit's modules is."""
    if not any(unlifted(value) for value in keywords.values()):
        return {}
    found = {}
    for name, owner, chain in _read(frame.f_code, frame.f_lasti):
        module = frame.f_locals.get(owner)
        if unlifted(keywords.get(name, ...)) and isinstance(module, nn.Module) and module in paths:
            found[name] = attribute(paths[module], chain)
    return found


@cache
def _read(code: CodeType, instruction: int) -> tuple[tuple[str, str, str], ...]:
    """(keyword, variable, attributes) for each keyword of the call at an instruction that is a variable's attribute."""
    call = expression(code, instruction)
    return tuple(_attributes(call)) if isinstance(call, ast.Call) else ()


def _attributes(call: ast.Call) -> Iterator[tuple[str, str, str]]:
    for keyword in call.keywords:
        owner, _, chain = ast.unparse(keyword.value).partition(".")
        if keyword.arg and isinstance(keyword.value, ast.Attribute) and owner.isidentifier():
            yield keyword.arg, owner, chain
