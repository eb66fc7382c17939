"""The model's own source behind the nodes of a trace, as its reader finds it."""

from __future__ import annotations

import ast
import linecache
from collections.abc import Callable
from traceback import walk_tb
from types import CodeType
from typing import Any

from torch import fx


def expression(code: CodeType, instruction: int) -> ast.expr | None:
    """The expression that an instruction ends, from the lines of its file."""
    line, end, column, last = list(code.co_positions())[instruction // 2]
    if line is None or end is None:
        return None
    text = [row.encode() for row in linecache.getlines(code.co_filename)[line - 1 : end]]
    if not text:
        return None
    text[-1] = text[-1][:last]
    text[0] = text[0][column:]
    try:
        return ast.parse(b"".join(text), mode="eval").body
    except SyntaxError:
        return None


def said(error: BaseException) -> str:
    """An error's words, on one line."""
    return " ".join(str(error).split())


def raised(error: BaseException, own: Callable[[CodeType], bool]) -> str:
    """An error's words, or that it wants numbers, which are not there; the innermost line of `own` code it passed."""
    reads = isinstance(error, RuntimeError) and ("meta tensor" in str(error) or "register_meta" in str(error))
    what = "it reads numbers out of a tensor" if reads else f"{type(error).__name__}: {said(error)}"
    places = [f"line {line}, in {f.f_code.co_qualname}" for f, line in walk_tb(error.__traceback__) if own(f.f_code)]
    return f"{what} ({places[-1]})" if places else what


def told(value: Any) -> str:
    """A node as the variable or the expression that it is, and where; another value as itself."""
    if not isinstance(value, fx.Node):
        return repr(value)
    names = value.meta.get("names") or ([str(value.target)] if value.op in ("placeholder", "get_attr") else [])
    if "instruction" not in value.meta:
        return names[0] if names else value.name
    code, instruction = value.meta["instruction"]
    written = expression(code, instruction)
    what = names[0] if names else ast.unparse(written) if written is not None else value.name
    return f"{what} (line {list(code.co_positions())[instruction // 2][0]}, in {code.co_qualname})"
