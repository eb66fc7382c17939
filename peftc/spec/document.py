"""A file as a tree of values, each with the place where it was written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from peftc.errors import Place

Scalar = str | int | float | bool | None
Step = str | int
Plain = Scalar | list["Plain"] | dict[str, "Plain"]


@dataclass(frozen=True, eq=False)
class Node:
    """A value and its place; the keys of a mapping have places of their own."""

    value: Scalar | tuple[Node, ...] | Mapping[str, Node]
    place: Place
    keys: Mapping[str, Place] = field(default_factory=dict)

    def child(self, step: Step) -> Node | None:
        if isinstance(self.value, Mapping):
            return self.value.get(str(step))
        if isinstance(self.value, tuple) and isinstance(step, int) and 0 <= step < len(self.value):
            return self.value[step]
        return None

    def nearest(self, path: tuple[Step, ...]) -> Node:
        """The node at a path, or the last one on the way to it."""
        node = self
        for step in path:
            below = node.child(step)
            if below is None:
                return node
            node = below
        return node

    def plain(self) -> Plain:
        """The values without their places."""
        if isinstance(self.value, Mapping):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, tuple):
            return [node.plain() for node in self.value]
        return self.value


def planted(value: Plain, place: Place) -> Node:
    """Values that nobody wrote, standing where the words stand that asked for them."""
    if isinstance(value, dict):
        return Node({k: planted(v, place) for k, v in value.items()}, place, dict.fromkeys(value, place))
    if isinstance(value, list):
        return Node(tuple(planted(v, place) for v in value), place)
    return Node(value, place)


@dataclass(frozen=True, eq=False)
class Origin:
    """Where the values of a spec were written; a spec made in Python has no root and no places."""

    root: Node | None = None

    def place(self, *path: Step) -> Place | None:
        """The place of a value, or of the nearest thing around it."""
        return self.root.nearest(path).place if self.root else None

    def key(self, *path: Step) -> Place | None:
        """The place of the key at the end of a path, or of the nearest thing around it."""
        if self.root is None:
            return None
        parent = self.root.nearest(path[:-1])
        return parent.keys.get(str(path[-1]), parent.place)


def shown(value: object) -> str:
    """A value as a message quotes it: short, and on one line."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, (list, tuple)):
        return "a list"
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= 60 else text[:56] + "…" + text[-1]
