"""Import lines, merged and in the order that linters expect."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable
from types import ModuleType

from peftc.emit.literal import WIDTH


def arranged(lines: Iterable[str]) -> str:
    """The imports of a file: the standard library, then the rest; each name once."""
    plain: set[str] = set()
    members: dict[str, set[str]] = {}
    for statement in ast.parse("\n".join(lines)).body:
        if isinstance(statement, ast.ImportFrom) and all(alias.asname is None for alias in statement.names):
            members.setdefault(statement.module or "", set()).update(alias.name for alias in statement.names)
        else:
            plain.add(ast.unparse(statement))
    rows = sorted(plain | {_from(module, names) for module, names in members.items()}, key=_order)
    sections = [[row for row in rows if _standard(row) is standard] for standard in (True, False)]
    return "\n\n".join("\n".join(section) for section in sections if section)


def _from(module: str, names: set[str]) -> str:
    ordered = sorted(names, key=lambda name: (not name.isupper(), not name[0].isupper(), name))
    flat = f"from {module} import {', '.join(ordered)}"
    if len(flat) <= WIDTH:
        return flat
    return "\n".join([f"from {module} import (", *(f"    {name}," for name in ordered), ")"])


def _order(row: str) -> tuple[bool, str]:
    return row.startswith("from "), row.split()[1]


def _standard(row: str) -> bool:
    return row.split()[1].split(".")[0] in sys.stdlib_module_names


def of_module(module: ModuleType, alias: str) -> str:
    """The line that binds a module to an alias."""
    package, _, name = module.__name__.rpartition(".")
    return f"from {package} import {name} as {alias}" if package else f"import {name} as {alias}"
