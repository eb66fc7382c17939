"""What a forward changes while it is traced: each node finds what those before it have left of an object, as a cache,
and what they have made of a tensor in place.
"""

from __future__ import annotations

import builtins
import operator
from typing import Any

from torch import fx, nn

from peftc.graph.branches import assume, enter, inputs, leave
from peftc.trace.record.memo import Held
from peftc.trace.record.nested import is_plain
from peftc.trace.tracer.values import Point

LOOKS = (getattr, builtins.isinstance, operator.getitem, operator.is_, operator.is_not, assume, enter, leave)
State = tuple[dict[fx.Node, tuple[Point, Point]], dict[fx.Node, fx.Node]]


class Live:
    """The nodes of one trace whose values are such objects or hold some; a value that is part of another stays so.

    `changed`: the tensors that were changed in place, and what was made of them.
    """

    def __init__(self) -> None:
        self.nodes: list[fx.Node] = []
        self.changed: dict[fx.Node, fx.Node] = {}

    def note(self, node: fx.Node) -> None:
        if _holds_objects(node.meta["value"][0]):
            self.nodes.append(node)

    def held(self, args: Any, kwargs: Any) -> Held:
        """The objects that a node is computed with; none where it is given none of them."""
        if not any(node in self.nodes for node in inputs((args, kwargs))):
            return {}, {}
        first, second = ({node: node.meta["value"][point] for node in self.nodes} for point in (0, 1))
        return first, second

    def left(self, held: Held) -> None:
        """What a node has made of what it was given is what later ones find."""
        for node in held[0]:
            node.meta["value"] = (held[0][node], held[1][node])

    def change(self, node: fx.Node, made: fx.Node) -> None:
        """A tensor is changed in place: every name of it has what is made from here on."""
        self.changed[self.now(node)] = made

    def now(self, node: fx.Node) -> fx.Node:
        """The node that has what a name stands for by now."""
        while node in self.changed:
            node = self.changed[node]
        return node

    def state(self) -> State:
        return {node: node.meta["value"] for node in self.nodes}, dict(self.changed)

    def restore(self, state: State) -> None:
        """Forget what was done, and the nodes that were noted, since."""
        values, self.changed = state
        self.nodes = list(values)
        for node, points in values.items():
            node.meta["value"] = points


def _holds_objects(value: object) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_objects, value.values()))
    if isinstance(value, (tuple, list)):
        return any(map(_holds_objects, value))
    return not (is_plain(value) or callable(value) or isinstance(value, nn.Module))
