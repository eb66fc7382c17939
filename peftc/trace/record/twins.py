"""Modules that are built alike: one of them shows how all of them run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

Scalar = bool | int | float | str | None
Index = tuple[str, str]
Twins = Mapping[nn.Module, nn.Module]


def twins(model: nn.Module) -> Twins:
    """Every module inside a repeated block -> the same place in the first block that is built like it."""
    found: dict[nn.Module, nn.Module] = {}
    for blocks in _outermost_lists(model, frozenset()):
        varying = varying_attributes(blocks)
        first: dict[Any, nn.Module] = {}
        for block in blocks:
            like = first.setdefault(structure(block, varying), block)
            places = dict(like.named_modules())
            found.update({module: places[path] for path, module in block.named_modules()})
    return found


def of_a_kind(module: nn.Module, alike: Twins) -> list[nn.Module]:
    """What is built like a module: first the one that shows how all of them run."""
    first = alike.get(module, module)
    return [first, *(other for other, like in alike.items() if like is first is not other)]


def _outermost_lists(module: nn.Module, seen: frozenset[nn.Module]) -> Iterator[list[nn.Module]]:
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield list(child)
        else:
            yield from _outermost_lists(child, seen)


def scalars(module: nn.Module) -> dict[Index, Scalar]:
    """(path, attribute) -> value, of every plain number, string or flag in a module."""
    return {
        (path, name): value
        for path, child in module.named_modules()
        for name, value in vars(child).items()
        if type(value) in (bool, int, float, str, type(None)) and not name.startswith("_") and name != "training"
    }


def varying_attributes(modules: Sequence[nn.Module]) -> frozenset[Index]:
    """The attributes that number the modules: an integer that differs in each of them."""
    tables = [scalars(m) for m in modules]
    names = set.intersection(*(set(t) for t in tables)) if len(tables) > 1 else set()
    numbers = {n: {t[n] for t in tables if type(t[n]) is int} for n in names}
    return frozenset(n for n, values in numbers.items() if len(values) == len(tables))


def structure(module: nn.Module, varying: frozenset[Index]) -> tuple[Any, ...]:
    """What makes two modules alike: classes, shapes and plain attributes, their numbering left out."""
    classes = tuple((path, type(child)) for path, child in module.named_modules())
    shapes = tuple((name, tuple(p.shape)) for name, p in module.named_parameters(remove_duplicate=False))
    plain = tuple(sorted((k, repr(v)) for k, v in scalars(module).items() if k not in varying))
    return classes, shapes, plain
