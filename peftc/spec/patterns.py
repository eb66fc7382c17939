"""Many names as few patterns: "layer.{0-2, 5}.q" stands for layer 0, 1, 2 and 5.  An artifact expands them."""

from __future__ import annotations

from collections.abc import Iterable

from peftc.spec.layers import NUMBER, ranges


def compress(names: Iterable[str]) -> tuple[str, ...]:
    """Patterns that expand to exactly these names: names that differ in their first number alone share one."""
    groups: dict[tuple[str, str], list[int]] = {}
    plain: dict[str, None] = {}
    for name in names:
        if found := NUMBER.search(name):
            groups.setdefault((name[: found.start()], name[found.end() :]), []).append(int(found.group()))
        else:
            plain[name] = None
    return (*plain, *(f"{head}{{{ranges(numbers)}}}{tail}" for (head, tail), numbers in groups.items()))


def template(name: str) -> str:
    """A name with its first number left open."""
    return NUMBER.sub("{}", name, count=1)
