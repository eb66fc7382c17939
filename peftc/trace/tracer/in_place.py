"""Tensors that a forward changes in place: a view of one holds what is made of it, where the graph has what it was."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import fx

from peftc.graph import dataflow
from peftc.graph.branches import assume, enter, leave
from peftc.trace.record.source import told
from peftc.trace.tracer.values import fail


def check_views(graph: fx.Graph, changed: Mapping[fx.Node, fx.Node]) -> None:
    """Fail where a view of a tensor, or what it is a view of, is read after it was changed in place.

    `changed`: what each such tensor was, and what was made of it.  What a unit is given itself is noted with what
    changes it: its caller may read it.
    """
    for old, made in changed.items():
        views = _views(graph, old)
        made.meta["arguments"] = [view.name for view in views if view.op == "placeholder"]
        late = {view for view in views for user in view.users if made < user and _reads(user, views)}
        if late and not any(user.target is operator.setitem for user in made.users) and _overlap(views, old, late):
            fail(f"it changes {told(old)} in place, and reads it as another view")


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
