"""What a method adds, and what it costs."""

from __future__ import annotations

from dataclasses import dataclass

Argument = int | float | str | bool | None | tuple[int, ...]


@dataclass(frozen=True)
class ModuleCall:
    """A constructor call of a class in peftc.modules: built here, printed into the artifact there."""

    name: str
    arguments: tuple[tuple[str, Argument], ...] = ()


@dataclass(frozen=True)
class Cost:
    """How many parameters something trains, and how many must be kept to run the model."""

    trained: int
    stored: int


@dataclass(frozen=True)
class SharedModule:
    """What a method adds once for several placements.

    Its class has `once_per_forward(model)`, which lets it work once in a forward of the model that it is added to.
    """

    call: ModuleCall
    cost: Cost
