"""Objects that a forward changes while it is traced, as a cache: each node finds what those before it have left."""

from __future__ import annotations

import builtins
import copy
import operator
from typing import Any

from torch import fx, nn

from peftc.graph.branches import assume, enter, inputs, leave
from peftc.trace.tracer.values import Point, is_plain

LOOKS = (getattr, builtins.isinstance, operator.getitem, operator.is_, operator.is_not, assume, enter, leave)
State = dict[fx.Node, tuple[Point, Point]]
Held = dict[fx.Node, Point]


class Live:
    """The nodes of one trace whose values are such objects or hold some; a value that is part of another stays so."""

    def __init__(self) -> None:
        self.nodes: list[fx.Node] = []

    def note(self, node: fx.Node) -> None:
        if _holds_objects(node.meta["value"][0]):
            self.nodes.append(node)

    def held(self, target: Any, args: Any, kwargs: Any) -> tuple[Held, Held] | None:
        """What a node is computed with at both points: the objects to look at, copies to change; None without any."""
        given = [node for node in inputs((args, kwargs)) if node in self.nodes]
        if not given:
            return None
        first, second = ({node: node.meta["value"][point] for node in self.nodes} for point in (0, 1))
        if target in LOOKS:
            return first, second
        return _copied(first), _copied(second)

    def left(self, held: tuple[Held, Held]) -> None:
        """What a node has made of what it was given is what later ones find."""
        for node in self.nodes:
            node.meta["value"] = (held[0][node], held[1][node])

    def state(self) -> State:
        return {node: node.meta["value"] for node in self.nodes}

    def restore(self, state: State) -> None:
        """Forget what was done, and the nodes that were noted, since."""
        self.nodes = list(state)
        for node, points in state.items():
            node.meta["value"] = points


def _copied(held: Held) -> Held:
    """Copies of objects, of which parts of one another are so again."""
    return dict(zip(held, copy.deepcopy(list(held.values())), strict=True))


def _holds_objects(value: object) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_objects, value.values()))
    if isinstance(value, (tuple, list)):
        return any(map(_holds_objects, value))
    return not (is_plain(value) or callable(value) or isinstance(value, nn.Module))
