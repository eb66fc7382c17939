"""What went wrong, where, and what to do; printed with the YAML line and a caret."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """A span in a file: 1-based line and column, the line's text, and how many characters to underline."""

    file: str
    line: int
    column: int
    text: str
    width: int = 1


@dataclass(frozen=True)
class Problem:
    """One complaint: what is wrong, where it was written, and what to do about it."""

    message: str
    place: Place | None = None
    hint: str | None = None

    def __str__(self) -> str:
        hint = f"\nhint: {self.hint}" if self.hint else ""
        if self.place is None:
            return f"error: {self.message}{hint}"
        at = self.place
        start = max(0, at.column - 81) if len(at.text) > 240 else 0
        text = at.text.rstrip("\n")[start : start + 240]
        gutter = f"{at.line:>5} | "
        caret = " " * 5 + " | " + " " * (at.column - 1 - start) + "^" * max(1, min(at.width, 160))
        return f"{at.file}:{at.line}:{at.column}: error: {self.message}\n{gutter}{text}\n{caret}{hint}"


class PeftcError(Exception):
    """The spec, the base or the artifact is wrong: every complaint at once.  The command line exits with 1."""

    def __init__(self, *problems: Problem | str) -> None:
        self.problems = tuple(Problem(p) if isinstance(p, str) else p for p in problems)
        super().__init__("\n\n".join(str(p) for p in self.problems))


class Defect(Exception):
    """peftc broke one of its own laws.  The command line says so and exits with 3."""


def raise_all(problems: Iterable[Problem]) -> None:
    """Raise one error that carries every problem, or return where there is none."""
    found = tuple(problems)
    if found:
        raise PeftcError(*found)
