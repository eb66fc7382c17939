"""An attention in the module's own words in which each query reads other keys: seen by what it makes of numbers."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from peftc.graph import dataflow
from peftc.graph.branches import assume, choose, end_of, enter, leave
from peftc.graph.closure import closure
from peftc.graph.sites import Windowed
from peftc.trace.record.feeds import FAILURES
from peftc.trace.roles.products import over_keys
from peftc.trace.roles.views import View, width_of
from peftc.trace.roles.written_attention import Found, unpassed, weighed_again
from peftc.trace.tracer.units import TRAINING

Held = dict[fx.Node, Any]
HIDDEN = -1e4  # a score of a key that a query does not read


def windowed(view: View, found: Found) -> Windowed | None:
    """Where learnt keys and values join an attention of (batch, length, heads, …) whose queries do not share keys.

    With all keys of a head equal, each query's scores have to be its product with them, but for keys that it does not
    read; with all values equal, the output has to be the sum of its weights times them.
    """
    if () in _rows(found.softmax) or not over_keys(view, found.softmax) or weighed_again(view, found):
        return None
    query, key, value = (_by_head(view, factor, found.softmax) for factor in (found.query, found.key, found.value))
    weights, output = _weights(view, found.softmax), _output(view, found)
    if query is None or key is None or value is None or output is None:
        return None
    nodes = (found.softmax, weights, output)
    if any(n.meta.get("guard") or end_of(n).next.meta.get("guard") for n in nodes):
        return None
    scores = dataflow.tensors(found.softmax)[0]
    if not _sums(view, _scored(view, query, key, scores), weights, value, output):
        return None
    return Windowed(
        query.name, found.softmax.name, weights.name, output.name, query.meta["value"][0].shape[2], width_of(key),
        width_of(value),
    )  # fmt: skip


def _by_head(view: View, factor: fx.Node, softmax: fx.Node) -> fx.Node | None:
    """The last value on the way to a factor that has a row where the softmax has one."""
    linears = dataflow.upstream(view.flow, factor, view.is_linear)
    way = dataflow.between(view.flow, linears[0], factor) if len(linears) == 1 else []
    return next((node for node in reversed(way) if _rows(node) == _rows(softmax)), None)


def _rows(node: fx.Node) -> list[tuple[int, ...]]:
    """The sizes of all axes but the last one of four."""
    values = node.meta["value"]
    return [tuple(v.shape[:-1]) if isinstance(v, torch.Tensor) and v.dim() == 4 else () for v in values]


def _weights(view: View, softmax: fx.Node) -> fx.Node:
    """The weights behind all that would be done to those of more keys too."""
    last, passed = softmax, {softmax}
    while len(readers := [n for n in view.flow.successors(last) if dataflow.holds_tensor(n)]) == 1:
        reader = readers[0]
        same = reader.meta["value"][0].shape == softmax.meta["value"][0].shape and not dataflow.is_move(reader)
        if not same or unpassed(view, reader, {*passed, reader}):
            break
        last = reader
        passed.add(reader)
    return last


def _output(view: View, found: Found) -> fx.Node | None:
    """What the second product makes, once it has a row where the softmax has one."""
    node: fx.Node | None = found.total
    while node is not None and _rows(node) != _rows(found.softmax):
        readers = [n for n in view.flow.successors(node) if dataflow.holds_tensor(n)]
        node = readers[0] if len(readers) == 1 and dataflow.is_move(readers[0]) else None
    return node


def _scored(view: View, query: fx.Node, key: fx.Node, scores: fx.Node) -> torch.Tensor | None:
    """Which keys each query reads, where each of their scores is its product with the key that all of a head have."""
    asked, same = dataflow.numbers(query, 1) - 0.5, dataflow.numbers(key, 2)[:1, :1] - 0.5
    made = _run(view, {query: asked, key: same}, scores)
    if made is None:
        return None
    wanted = (asked * same).sum(-1, keepdim=True).expand(made.shape)
    read = made > HIDDEN
    right = torch.isclose(made, wanted, rtol=1e-4, atol=1e-5) | ~read
    return read if bool(right.all() and read.any(-1).all()) else None


def _sums(view: View, read: torch.Tensor | None, weights: fx.Node, value: fx.Node, output: fx.Node) -> bool:
    """Whether the output is the sum of the weights of what a query reads, times the value that all of a head have."""
    if read is None:
        return False
    given, same = (dataflow.numbers(weights, 3) - 0.5) * read, dataflow.numbers(value, 4)[:1, :1] - 0.5
    made = _run(view, {weights: given, value: same}, output)
    wanted = given.sum(-1, keepdim=True) * same
    return made is not None and made.shape == wanted.shape and torch.allclose(made, wanted, rtol=1e-4, atol=1e-5)


def _laid_out(numbers: torch.Tensor, node: fx.Node) -> torch.Tensor:
    """Numbers in memory as a node's own are: a model may count on it."""
    value = node.meta["value"][0]
    return torch.empty_strided(value.shape, value.stride(), device="cpu").copy_(numbers)


def _run(view: View, given: Mapping[fx.Node, torch.Tensor], end: fx.Node) -> torch.Tensor | None:
    """What becomes of some numbers at the end, where the unit is given zeros; None where that cannot be computed."""
    held: Held = {node: _laid_out(numbers, node) for node, numbers in given.items()}
    try:
        for node in (n for n in sorted(_behind(view, end, set(given))) if n not in held):
            held[node] = _computed(view, node, held)
    except FAILURES:
        return None
    made = held[end]
    return made if isinstance(made, torch.Tensor) and not made.is_meta else None


def _behind(view: View, end: fx.Node, but: set[fx.Node]) -> set[fx.Node]:
    """All that a node is made from, what is copied into that too, as far as some nodes."""

    def before(node: fx.Node) -> list[fx.Node]:
        written = view.flow.predecessors(node) if node in view.flow else ()
        return [] if node in but else [*node.all_input_nodes, *written]

    return closure([end], before)


def _computed(view: View, node: fx.Node, held: Held) -> Any:
    if node.op == "placeholder":
        return _zeros(node.meta["value"][0])
    if node.target in (assume, enter, leave):
        return None
    if node.meta.get("guard") or (node.target is choose and node.args[0] != TRAINING):
        raise ValueError(f"{node} is one way of several")
    if node.target is choose:
        return held[node.args[2]] if isinstance(node.args[2], fx.Node) else node.args[2]
    module = view.called(node)
    if module is None:
        return dataflow.recomputed(node, held)
    return copy.deepcopy(module).eval()(*fx.node.map_arg(node.args, lambda n: held[n]))


def _zeros(value: object) -> object:
    return torch.zeros(value.shape, dtype=value.dtype, device="cpu") if isinstance(value, torch.Tensor) else value
