"""The laws of the tree: imports run one way, some libraries have one home, nothing grows past its ceiling."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "peftc").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
RANKS = (
    ("errors",),
    ("modules", "graph"),
    ("methods",),
    ("spec",),
    ("trace.record",),
    ("trace.tracer",),
    ("trace.roles",),
    ("trace",),
    ("hints",),
    ("attributes", "identity", "selectors"),
    ("legality", "notes"),
    ("selection",),
    ("plan",),
    ("rewrite",),
    ("report",),
    ("emit",),
    ("runtime",),
    ("compiler",),
    ("cli_show", "cli_verify"),
    ("cli",),
)
RANK = {name: rank for rank, names in enumerate(RANKS) for name in names}
HOMES = {
    "transformers": ("trace", "runtime"),
    "networkx": ("graph.dataflow",),
    "jinja2": ("emit", "report"),
    "yaml": ("spec.load",),
}
BANNED = {"utils", "util", "helpers", "helper", "common", "misc", "core", "manager", "managers"}


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT / "peftc").with_suffix("").parts)


def part(name: str) -> str | None:
    """The ranked part of the tree that a module lies in: the innermost."""
    steps = name.split(".")
    return next((p for end in (2, 1) if (p := ".".join(steps[:end])) in RANK), None)


def imports(node: ast.AST) -> Iterator[str]:
    """What is imported when a file is imported or runs; an import for the type checker alone does not count."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        if isinstance(child, ast.ImportFrom):
            yield child.module or ""
        yield from imports(child)


def calls(path: Path) -> set[str]:
    return {
        ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)
    }


@pytest.mark.parametrize("path", FILES, ids=module)
def test_imports(path: Path) -> None:
    name = module(path)
    for imported in imports(ast.parse(path.read_text("utf-8"))):
        top, _, rest = imported.partition(".")
        homes = HOMES.get(top, ("",))
        assert any(f"{name}.".startswith(home) for home in homes), f"{name} imports {top}"
        own, theirs = part(name), part(rest)
        if top == "peftc" and own and theirs:
            assert RANK[theirs] < RANK[own] or theirs == own, f"{name} imports {imported}"


@pytest.mark.parametrize("path", [*FILES, *TESTS], ids=lambda path: str(path.relative_to(ROOT)))
def test_ceilings(path: Path) -> None:
    text = path.read_text("utf-8")
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert len(text.splitlines()) <= 300
    assert path.stem not in BANNED
    assert [f.name for f in functions if (f.end_lineno or f.lineno) - f.lineno >= 50] == []


def test_only_the_command_line_prints_or_exits() -> None:
    talkers = {module(path) for path in FILES if calls(path) & {"print", "sys.exit", "exit", "quit"}}
    assert talkers - {"emit.compiled"} == {"cli"}  # what is pasted into artifacts prints there
