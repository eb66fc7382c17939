"""Where a unit normalises: by a module, a function, or operations of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import fx

from peftc.graph import dataflow
from peftc.trace.roles.normalising import is_norm, normalises, ones
from peftc.trace.roles.views import View

LONGEST = 16  # operations that a norm may be written as


def is_normed(view: View, node: fx.Node) -> bool:
    """Whether a node is a call of a norm, or of a function that normalises one tensor."""
    if node.op == "call_module":
        return is_norm(view.called(node))
    source, *others = dataflow.tensors(node) or [node]
    known = node.op == "call_function" and source is not node and all(n.op == "get_attr" for n in others)
    return known and _is_one(source, [node])


def norm_behind(view: View, start: fx.Node) -> fx.Node | None:
    """The norm that alone reads a value, or a view of it: its call, or the last of the operations it is written as."""
    readers = _made_from(view, start)
    while len(readers) == 1 and dataflow.is_move(readers[0]):
        start, readers = readers[0], _made_from(view, readers[0])
    if len(readers) == 1 and is_normed(view, readers[0]):
        return readers[0]
    return next((way[-1] for way in _necks(view, start) if _is_one(start, way)), None)


def gains(view: View) -> Iterator[str]:
    """The vectors of a unit that a norm which is written out applies, and which no module has for it."""
    for node in view.graph.nodes:
        held = dataflow.example(node) if node.op == "get_attr" else None
        if isinstance(held, torch.Tensor) and held.dim() == 1 and _is_gain(view, node):
            yield str(node.target)


def _is_gain(view: View, vector: fx.Node) -> bool:
    """Whether the operation in which a vector meets other numbers is the last of a norm."""
    own = dataflow.reached(view.flow, vector)
    joined = (n for n in sorted(own) if any(t not in own and t.op != "get_attr" for t in dataflow.tensors(n)))
    meeting = next(joined, None)
    if meeting is None:
        return False
    back = view.flow.reverse(copy=False)
    computed = {n for n in dataflow.reached(back, meeting) if n.op != "get_attr"}
    nearest = sorted(computed - own)[-LONGEST:]
    return any(_is_one(source, sorted(computed - dataflow.reached(back, source))) for source in nearest)


def _necks(view: View, start: fx.Node) -> Iterator[list[fx.Node]]:
    """The operations on a value and weights alone, up to each of them that is all that is read of them later."""
    way: list[fx.Node] = []
    for node in sorted(dataflow.reached(view.flow, start) - {start})[:LONGEST]:
        others = (n for n in dataflow.tensors(node) if n is not start and n not in way)
        if node.op not in ("call_function", "call_method") or any(n.op != "get_attr" for n in others):
            return
        readers = {reader for n in (start, *way) for reader in _made_from(view, n)}
        way.append(node)
        if readers <= set(way):
            yield [*way]


def _made_from(view: View, node: fx.Node) -> list[fx.Node]:
    """The tensors that are made from a node, and not from its sizes alone."""
    return [n for n in view.flow.successors(node) if dataflow.holds_tensor(n)]


def _is_one(source: fx.Node, way: Sequence[fx.Node]) -> bool:
    """Whether operations on one tensor, and on weights, normalise it."""
    made = dataflow.example(way[-1])
    if not isinstance(made, torch.Tensor) or made.dim() == 0:
        return False
    weights = {n: ones(n.meta["value"][0]) for node in way for n in node.all_input_nodes if n.op == "get_attr"}

    def compute(x: torch.Tensor) -> object:
        held: dict[fx.Node, object] = {source: x, **weights}
        for node in way:
            held[node] = dataflow.recomputed(node, held)
        return held[way[-1]]

    return normalises(compute, made.shape[-1:])
