"""What a forward changes while it is traced: objects, as a cache, of which each node finds what those before it have
left; and tensors that it adds to in place, which have other names and views.
"""

from __future__ import annotations

import builtins
import copy
import operator
from contextlib import suppress
from typing import Any

import torch
from torch import fx, nn

from peftc.graph import dataflow
from peftc.graph.branches import assume, enter, inputs, leave
from peftc.trace.record.source import told
from peftc.trace.tracer.values import Point, fail, is_plain

LOOKS = (getattr, builtins.isinstance, operator.getitem, operator.is_, operator.is_not, assume, enter, leave)
State = tuple[dict[fx.Node, tuple[Point, Point]], dict[fx.Node, fx.Node]]
Held = dict[fx.Node, Point]


class Live:
    """The nodes of one trace whose values are such objects or hold some; a value that is part of another stays so."""

    def __init__(self) -> None:
        self.nodes: list[fx.Node] = []
        self.changed: dict[fx.Node, fx.Node] = {}

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

    def change(self, node: fx.Node, made: fx.Node) -> None:
        """A tensor is changed in place: every name of it has what is made from here on."""
        self.changed[self.now(node)] = made

    def now(self, node: fx.Node) -> fx.Node:
        """The node that has what a name stands for by now."""
        while node in self.changed:
            node = self.changed[node]
        return node

    def check_views(self, graph: fx.Graph) -> None:
        """Fail where a view of a tensor, or what it is a view of, is read after it was changed in place.

        What a unit is given itself is noted with what changes it: its caller may read it.
        """
        for old, made in self.changed.items():
            views = _views(graph, old)
            made.meta["arguments"] = [view.name for view in views if view.op == "placeholder"]
            late = {view for view in views for user in view.users if made < user and _reads(user, views)}
            if late and not any(user.target is operator.setitem for user in made.users) and _overlap(views, old, late):
                fail(f"it changes {told(old)} in place, and reads it as another view")

    def state(self) -> State:
        return {node: node.meta["value"] for node in self.nodes}, dict(self.changed)

    def restore(self, state: State) -> None:
        """Forget what was done, and the nodes that were noted, since."""
        values, self.changed = state
        self.nodes = list(values)
        for node, points in values.items():
            node.meta["value"] = points


def _views(graph: fx.Graph, node: fx.Node) -> list[fx.Node]:
    """The tensor that a node is a view of, or the node itself, and what moves make of that: in the graph's order."""
    while (source := _moved(node)) and (_moved(source) or isinstance(source.meta["value"][0], torch.Tensor)):
        node = source
    found = [node]
    found += (move for move in graph.nodes if _moved(move) in found)
    return found


def _reads(user: fx.Node, views: list[fx.Node]) -> bool:
    """Whether a node reads one of the views, and makes no other one of it."""
    return user not in views and user.target not in (assume, enter, leave)


def _overlap(views: list[fx.Node], node: fx.Node, others: set[fx.Node]) -> bool:
    """Whether others of the views of one tensor have numbers that a node has."""
    shape = views[0].meta["value"][0].shape
    held: dict[fx.Node, Any] = {views[0]: torch.arange(shape.numel(), device="cpu").view(shape)}
    for move in views[1:]:
        with suppress(KeyError, RuntimeError):  # no such view of numbers that lie one behind another
            held[move] = dataflow.recomputed(move, {n: held[n] for n in dataflow.tensors(move)})
    known = [held[view].flatten() for view in (node, *others) if isinstance(held.get(view), torch.Tensor)]
    return len(known) <= len(others) or any(bool(torch.isin(places, known[0]).any()) for places in known[1:])


def _moved(node: fx.Node) -> fx.Node | None:
    """What a node moves, where that is all that it reads."""
    source = node.args[0] if dataflow.is_move(node) and len(dataflow.tensors(node)) == 1 else None
    return source if isinstance(source, fx.Node) else None


def _copied(held: Held) -> Held:
    """Copies of objects, of which parts of one another are so again."""
    return dict(zip(held, copy.deepcopy(list(held.values())), strict=True))


def _holds_objects(value: object) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_objects, value.values()))
    if isinstance(value, (tuple, list)):
        return any(map(_holds_objects, value))
    return not (is_plain(value) or callable(value) or isinstance(value, nn.Module))
