"""Source text that goes into an artifact, or is hashed by it: pasted modules, and the base code they stand on."""

from __future__ import annotations

import ast
import hashlib
import inspect
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FunctionType, ModuleType

from torch import nn

from peftc.errors import Defect
from peftc.graph.sites import Unit

MODULES = Path(__file__).parent.parent / "modules"


@dataclass(frozen=True)
class Piece:
    """A top-level statement of a file that binds `name`: its text, and the names that it reads."""

    name: str
    text: str
    reads: frozenset[str]


@dataclass(frozen=True)
class Pasted:
    """Classes, functions and constants in the order in which they can be defined, and the imports that they need."""

    pieces: tuple[Piece, ...]
    imports: tuple[str, ...]


@cache
def library() -> tuple[Mapping[str, Piece], Mapping[str, str]]:
    """Every piece of the pasted modules, and every import line that they use, by name."""
    pieces: dict[str, Piece] = {}
    imports: dict[str, str] = {}
    for path in sorted(MODULES.glob("*.py")):
        text = path.read_text(encoding="utf-8")
        for statement in ast.parse(text).body:
            imports |= _bound_by_import(statement)
            pieces |= {piece.name: piece for piece in _pieces(statement, text)}
    return pieces, imports


def _bound_by_import(statement: ast.stmt) -> dict[str, str]:
    if isinstance(statement, ast.Import):
        return {(a.asname or a.name).split(".")[0]: ast.unparse(ast.Import([a])) for a in statement.names}
    if not isinstance(statement, ast.ImportFrom):
        return {}
    if statement.module == "__future__" or (statement.module or "").startswith("peftc") or statement.level:
        return {}
    return {a.asname or a.name: ast.unparse(ast.ImportFrom(statement.module, [a], 0)) for a in statement.names}


def _pieces(statement: ast.stmt, text: str) -> Iterator[Piece]:
    for name in _bound_by(statement):
        reads = frozenset(n.id for n in ast.walk(statement) if isinstance(n, ast.Name) and n.id != name)
        yield Piece(name, _segment(statement, text), reads)


def _bound_by(statement: ast.stmt) -> tuple[str, ...]:
    if isinstance(statement, ast.ClassDef | ast.FunctionDef):
        return (statement.name,)
    if isinstance(statement, ast.Assign):
        return tuple(t.id for t in statement.targets if isinstance(t, ast.Name))
    if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
        return (statement.target.id,)
    return ()


def _segment(statement: ast.stmt, text: str) -> str:
    decorators = statement.decorator_list if isinstance(statement, ast.ClassDef | ast.FunctionDef) else []
    first = min([statement.lineno, *(d.lineno for d in decorators)])
    return "\n".join(text.splitlines()[first - 1 : statement.end_lineno])


def paste(names: Iterable[str]) -> Pasted:
    """These classes and functions with all that they use, each after what it uses."""
    pieces, imports = library()
    ordered: dict[str, Piece] = {}
    for name in sorted(set(names)):
        if name not in pieces:
            raise Defect(f"no module in {MODULES.name}/ defines {name}")
        _visit(name, pieces, ordered)
    used = frozenset(name for piece in ordered.values() for name in piece.reads)
    return Pasted(tuple(ordered.values()), tuple(sorted({imports[n] for n in used if n in imports})))


def _visit(name: str, pieces: Mapping[str, Piece], ordered: dict[str, Piece]) -> None:
    if name in ordered or name not in pieces:
        return
    for read in sorted(pieces[name].reads):
        _visit(read, pieces, ordered)
    ordered[name] = pieces[name]


@cache
def digest(thing: type | FunctionType) -> str | None:
    """sha256 of a source text, as `inspect.getsource` gives it; None of a class in a notebook, which has none."""
    try:
        return hashlib.sha256(_text(thing).encode()).hexdigest()
    except (OSError, TypeError):
        return None


def _text(thing: type | FunctionType) -> str:
    """Its text.  `inspect.getsource` parses the whole file whenever it is asked for a class: here it is parsed once."""
    home = sys.modules[thing.__module__]
    if isinstance(thing, type) and getattr(home, "__file__", None):
        lines, classes = _file(home)
        if len(starts := classes.get(thing.__qualname__, ())) == 1:
            return "".join(inspect.getblock(lines[starts[0] - 1 :]))
    return inspect.getsource(thing)


@cache
def _file(home: ModuleType) -> tuple[Sequence[str], Mapping[str, Sequence[int]]]:
    """The lines of a module's file, and those at which its classes start."""
    lines, starts = inspect.getsourcelines(home)[0], defaultdict[str, list[int]](list)
    for statement in ast.parse("".join(lines)).body:
        if isinstance(statement, ast.ClassDef):
            starts[statement.name].append(min([statement.lineno, *(d.lineno for d in statement.decorator_list)]))
    return lines, starts


def stood_on(unit: Unit, path: str, model: nn.Module) -> dict[str, type | FunctionType]:
    """What the trace of a unit read: its class, the classes inlined into it, the functions that their forwards call.

    Keys are "module:name".
    """
    found: dict[str, type | FunctionType] = {}
    for module in model.get_submodule(path).modules():
        if type(module).__module__.startswith("torch.") or not (module is model.get_submodule(path) or module._modules):
            continue
        _collect(type(module), found)
    _collect(unit.base, found)
    return dict(sorted(found.items()))


def _collect(thing: type | FunctionType, found: dict[str, type | FunctionType]) -> None:
    home = sys.modules[thing.__module__]
    key = f"{thing.__module__}:{thing.__qualname__}"
    if key in found:
        return
    found[key] = thing
    forward = inspect.unwrap(vars(thing).get("forward", lambda: None)) if isinstance(thing, type) else thing
    for name in forward.__code__.co_names:
        called = _own_function(home, name)
        if called is not None:
            _collect(called, found)


def _own_function(home: ModuleType, name: str) -> FunctionType | None:
    """A function that a module defines itself, under that name."""
    value = inspect.unwrap(f) if callable(f := vars(home).get(name)) else None
    return value if isinstance(value, FunctionType) and value.__module__ == home.__name__ else None
