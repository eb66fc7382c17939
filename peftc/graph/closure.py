"""All that can be reached from some things, step by step."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

Thing = TypeVar("Thing", bound=Hashable)


def closure(starts: Iterable[Thing], following: Callable[[Thing], Iterable[Thing]]) -> set[Thing]:
    """The things to start from, those that follow them, those that follow these, and so on."""
    found = set(starts)
    waiting = [*found]
    while waiting:
        new = {*following(waiting.pop())} - found
        found |= new
        waiting += new
    return found
