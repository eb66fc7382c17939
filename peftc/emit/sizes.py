"""Sizes that the examples share, read where the source reads them: `x.shape[-1]`, or the source's own variable."""

from __future__ import annotations

import operator
from collections.abc import Hashable
from functools import partial
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_aggregate

from peftc.graph.branches import Size, enter, leave
from peftc.graph.dataflow import example


def with_sizes(graph: fx.Graph) -> None:
    """Let numbers that remember a tensor be read from it, where that is at hand."""
    reads = _Reads(graph)
    for node in list(graph.nodes):
        if node.target not in (enter, leave):
            node.args, node.kwargs = (map_aggregate(a, partial(reads.read, node)) for a in (node.args, node.kwargs))


class _Reads:
    """The nodes that read sizes, as far as there are any; a place in the source that made several nodes tells none."""

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self.order = {node: i for i, node in enumerate(graph.nodes)}
        self.last: dict[fx.Node, int] = {}
        for node in reversed(graph.nodes):
            through = [self.last[user] for user in node.users if user.target in (getattr, operator.getitem)]
            self.last[node] = max([-1, *through, *map(self.order.__getitem__, node.users)])
        self.made: dict[Hashable, list[fx.Node]] = {}
        for node in graph.nodes:
            self.made.setdefault(node.meta.get("key"), []).append(node)
        self.found: dict[tuple[fx.Node, int], fx.Node] = {}

    def read(self, user: fx.Node, size: Any) -> Any:
        """The node that a size is, for one that uses it; the number where there is none.  Other arguments stay."""
        if type(size) is not Size:
            return size
        for key, place in size.read_from:
            sources = self.made.get(key, [])
            if len(sources) == 1 and self._serves(sources[0], size, place, user):
                return self._item(sources[0], place, size)
        return int(size)

    def _serves(self, source: fx.Node, size: Size, place: int, user: fx.Node) -> bool:
        """Whether a node is there where it is used, and its name is, too."""
        guard = source.meta.get("guard", ())
        if self.order[source] >= self.order[user] or user.meta.get("guard", ())[: len(guard)] != guard:
            return False
        held = example(source)
        shape = held.shape if isinstance(held, torch.Tensor) else held
        apart = held is shape and any(item.meta.get("names") for item in source.users)
        known = isinstance(shape, tuple) and len(shape) > place and shape[place] == size
        return known and (size.name is not None or (self.last[source] >= self.order[user] and not apart))

    def _item(self, source: fx.Node, place: int, size: Size) -> fx.Node:
        if (source, place) not in self.found:
            shape = example(source)
            if isinstance(shape, torch.Tensor):
                shape = shape.shape
                source = self._behind(source, getattr, (source, "shape"), shape)
            item = self._behind(source, operator.getitem, (source, place), int(size))
            item.meta["names"] = [size.name] if size.name else []
            self.found[source, place] = item
        return self.found[source, place]

    def _behind(self, source: fx.Node, function: Any, args: tuple[Any, ...], value: Any) -> fx.Node:
        behind = source
        while behind.next.op == "placeholder" or behind.next.target is operator.getitem:
            behind = behind.next
        with self.graph.inserting_after(behind):
            node = self.graph.call_function(function, args)
        node.meta.update(value=(value, value), guard=source.meta.get("guard", ()))
        return node
