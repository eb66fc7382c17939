"""The data flow of a graph: what a value was made from, and what it becomes, along the plain path."""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import networkx as nx
import torch
from torch import fx

from peftc.graph.branches import SelfReference, assume, choose, enter, leave

Flow: TypeAlias = "nx.DiGraph[fx.Node]"

MOVES = frozenset({
    "view", "reshape", "transpose", "permute", "split", "chunk", "unbind", "contiguous", "unflatten", "flatten",
    "squeeze", "unsqueeze", "getitem", "tensor_split", "swapaxes", "movedim",
})  # fmt: skip


SCALES = frozenset({"mul", "imul", "mul_", "truediv", "itruediv", "div", "div_"})
BLANK = frozenset({"new_empty", "new_zeros", "new_ones", "new_full", "empty_like", "zeros_like", "ones_like"})


def flow(graph: fx.Graph) -> Flow:
    """Edges from a value to what reads it: cached values, sizes and markers left out; tuples taken apart exactly."""
    found: Flow = nx.DiGraph()
    found.add_nodes_from(n for n in graph.nodes if n.target not in (enter, leave, assume))
    for node in list(found.nodes):
        found.add_edges_from((source, node) for source in sources(node) if source in found)
        if (target := _written(node)) is not None:
            found.add_edge(node, target)
    return found


def _written(node: fx.Node) -> fx.Node | None:
    """The tensor that a node copies into, in whole or in part."""
    copies = node.target is operator.setitem or (node.op == "call_method" and node.target == "copy_")
    target = unmoved(node.args[0]) if copies else None
    return target if isinstance(target, fx.Node) else None


def sources(node: fx.Node) -> list[fx.Node]:
    """The nodes whose data a node holds."""
    if node.target is choose:
        return [a for a in node.args[1:] if isinstance(a, fx.Node)]
    if node.target is operator.getitem and isinstance(node.args[0], fx.Node) and isinstance(node.args[1], int):
        return _item_sources(node.args[0], node.args[1]) or [node.args[0]]
    if name_of(node) in BLANK:
        return []
    if _written(node) is not None:
        given = node.args[2:] if node.target is operator.setitem else node.all_input_nodes[1:]
        return [n for n in given if isinstance(n, fx.Node) and holds_tensor(n)]
    return tensors(node)


def tensors(node: fx.Node) -> list[fx.Node]:
    """The tensors that a node reads, each once."""
    return [n for n in node.all_input_nodes if holds_tensor(n)]


def product_of(node: fx.Node) -> fx.Node:
    """A product; of one in each of two branches, that to which less is added."""
    sides = [n for n in node.args[1:] if isinstance(n, fx.Node)] if node.target is choose else [node]
    return min(sides, key=lambda side: len(tensors(side)))


def example(value: Any) -> Any:
    """What a node gave in the first example call, None where that is not known; any other value is itself."""
    return value.meta.get("value", (None,))[0] if isinstance(value, fx.Node) else value


def holds_tensor(node: fx.Node) -> bool:
    return any(isinstance(x, torch.Tensor) for x in _leaves(example(node)))


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def _item_sources(node: fx.Node, index: int) -> list[fx.Node]:
    """The inputs that one item of a function's tuple depends on, seen by what requires a gradient."""
    inputs = [n for n in node.all_input_nodes if isinstance(example(n), torch.Tensor)]
    if node.op not in ("call_function", "call_method") or own_method(node) is not None or len(inputs) < 2:
        return []
    return [n for n in inputs if _depends(node, index, n)]


def _depends(node: fx.Node, index: int, source: fx.Node) -> bool:
    def fresh(n: fx.Node) -> Any:
        value = n.meta["value"][0]
        if not isinstance(value, torch.Tensor):
            return copy.deepcopy(value)
        return value.detach().clone().requires_grad_(n is source) if value.is_floating_point() else value

    args, kwargs = fx.node.map_arg(node.args, fresh), fx.node.map_arg(node.kwargs, fresh)
    try:
        with torch.enable_grad():
            items = _called(node, args, kwargs)
    except (LookupError, RuntimeError):  # examples of several calls, in sizes that do not fit together
        return True
    return isinstance(items[index], torch.Tensor) and items[index].requires_grad


def _called(node: fx.Node, args: Any, kwargs: Any) -> Any:
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    assert callable(node.target)
    return node.target(*args, **kwargs)


def upstream(graph: Flow, start: fx.Node, wanted: Callable[[fx.Node], bool]) -> list[fx.Node]:
    """The nearest nodes before `start` that are wanted, on every path; paths end there."""
    return _nearest(start, graph.predecessors, wanted)


def downstream(graph: Flow, start: fx.Node, wanted: Callable[[fx.Node], bool]) -> list[fx.Node]:
    """The nearest nodes after `start` that are wanted, on every path; paths end there."""
    return _nearest(start, graph.successors, wanted)


def _nearest(
    start: fx.Node, step: Callable[[fx.Node], Iterator[fx.Node]], wanted: Callable[[fx.Node], bool]
) -> list[fx.Node]:
    found: dict[fx.Node, None] = {}
    seen, queue = {start}, [start]
    while queue:
        for node in step(queue.pop(0)):
            if node in seen:
                continue
            seen.add(node)
            if wanted(node):
                found[node] = None
            else:
                queue.append(node)
    return list(found)


def between(graph: Flow, start: fx.Node, end: fx.Node, but: Iterable[fx.Node] = ()) -> list[fx.Node]:
    """Every node on a way from one node to another that passes none of some, in the order of the graph."""
    left = graph.subgraph(set(graph).difference(but))
    return sorted(reached(left, start) & reached(left.reverse(copy=False), end))


def reached(graph: Flow, start: fx.Node) -> set[fx.Node]:
    """A node and everything that depends on it."""
    return {start, *nx.descendants(graph, start)}


def is_move(node: fx.Node) -> bool:
    """Whether a node only moves numbers: views, splits, transpositions, items."""
    return node.op in ("call_function", "call_method") and name_of(node) in MOVES


def unmoved(value: Any) -> Any:
    """What moves made a value of; the value itself where none did."""
    while isinstance(value, fx.Node) and is_move(value):
        value = value.args[0]
    return value


def name_of(node: fx.Node) -> str:
    """The name of the function or the tensor's method that a node calls; "" where it is a module's own method."""
    if own_method(node) is not None:
        return ""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


def scaled(node: fx.Node) -> fx.Node | None:
    """The tensor that a node multiplies, or divides, by one number."""
    if name_of(node) not in SCALES or len(node.args) != 2:
        return None
    for tensor, factor in (node.args, node.args[::-1])[: 2 if name_of(node) == "mul" else 1]:
        if isinstance(tensor, fx.Node) and holds_tensor(tensor) and _is_number(factor):
            return tensor
    return None


def _is_number(value: Any) -> bool:
    values = value.meta["value"] if isinstance(value, fx.Node) else (value,)
    return all(v.numel() == 1 if isinstance(v, torch.Tensor) else isinstance(v, (int, float)) for v in values)


def own_method(node: fx.Node) -> str | None:
    """The path of the module inside the unit whose method a node calls; None where it calls anything else."""
    subject = node.args[0] if node.op == "call_method" else None
    return subject.path if isinstance(subject, SelfReference) else None


@dataclass(frozen=True)
class Features:
    """The features of a linear that arrive somewhere: at `node` first, alone, and which rows of the linear they are.

    `dims`, `order` and `ones` say how `node` holds them, where that is not the linear's own shape; see Projection.
    """

    node: fx.Node
    rows: tuple[int, ...]
    dims: tuple[int, ...] = ()
    order: tuple[int, ...] = ()
    ones: tuple[int, ...] = ()


def features(way: list[fx.Node], width: int) -> Features | None:
    """Which of a linear's features arrive at the end of a way: nodes in the graph's order, the linear first.

    Parts that take several ways count together, as far as one node holds them all.  Where that node holds features in
    one axis with examples or positions, or something changes all of them before they come apart, the linear itself has
    them among others; None where they lie apart there.
    """
    head, end = way[0], way[-1]
    shape = (*head.meta["value"][0].shape[:-1], width)
    tensors, final = _followed(way, shape, changed=False)
    if not final:
        return Features(end, ())
    _, changed = _followed(way, shape, changed=True)
    if changed and changed < final:
        return _among_others(head, sorted(changed))
    first = [node for node, places in tensors.items() if final <= _arrived(places, width)]
    closest = min(first, key=lambda node: len(_arrived(tensors[node], width)), default=head)
    return _laid_out(closest, tensors[closest], shape) or _among_others(head, sorted(final))


def _followed(
    way: list[fx.Node], shape: tuple[int, ...], *, changed: bool
) -> tuple[dict[fx.Node, torch.Tensor], set[int]]:
    """The tensors that hold a linear's numbers, with their places in its output, and the features that the rest reads.

    The end of the way reads what it holds.  `changed`: what is made of one tensor in its shape, as a bound is, counts
    as holding the same numbers.
    """
    held: dict[fx.Node, Any] = {way[0]: torch.arange(math.prod(shape)).view(shape)}
    for node in way[1:]:
        if is_move(node) and node.args[0] in held:
            held[node] = recomputed(node, held)
        elif changed and (source := _in_its_shape(node)) in held:
            held[node] = held[source]
    tensors = {node: places for node, places in held.items() if isinstance(places, torch.Tensor)}
    read = {n for node in way if node not in held for n in sources(node)} | {way[-1]}
    return tensors, set[int]().union(*(_arrived(p, shape[-1]) for n, p in tensors.items() if n in read))


def _in_its_shape(node: fx.Node) -> fx.Node | None:
    """The one tensor of its own shape that a node reads."""
    given = [n for n in tensors(node) if getattr(example(n), "shape", None) == getattr(example(node), "shape", ())]
    return given[0] if len(given) == 1 == len(tensors(node)) else None


def _among_others(head: fx.Node, rows: list[int]) -> Features | None:
    return Features(head, tuple(rows)) if rows == list(range(rows[0], rows[-1] + 1)) else None


def _arrived(held: torch.Tensor, width: int) -> set[int]:
    return set((held % width).unique().tolist())


def _laid_out(node: fx.Node, places: torch.Tensor, shape: tuple[int, ...]) -> Features | None:
    """How a node holds features, from the place in the linear's output that each of its numbers came from."""
    width, lead = shape[-1], tuple(size for size in shape[:-1] if size > 1)
    coordinates = torch.unravel_index(places // width, lead)
    varying = [_varying_axes(c) for c in coordinates]
    axes = [axis for own in varying for axis in own]
    free = [axis for axis in range(places.dim()) if axis not in axes]
    if any(len(own) != 1 for own in varying) or len(set(axes)) < len(axes):
        return None
    moved = places.permute(*axes, *free) % width
    each = moved.reshape(-1, *moved.shape[len(lead) :])
    if not bool((each == each[0]).all()):
        return None
    rows = tuple(each[0].flatten().tolist())
    if axes == list(range(len(shape) - 1)) and len(free) == 1:
        return Features(node, rows)
    source = {axis: position for position, axis in enumerate((*axes, *free))}
    ones = tuple(axis for axis, size in enumerate(shape[:-1]) if size == 1)
    dims, order = tuple(moved.shape[len(lead) :]), tuple(source[axis] for axis in range(places.dim()))
    return Features(node, rows, dims, order, ones)


def _varying_axes(coordinate: torch.Tensor) -> list[int]:
    """The axes along which a coordinate changes."""
    return [a for a in range(coordinate.dim()) if coordinate.shape[a] > 1 and bool(coordinate.diff(dim=a).any())]


def recomputed(node: fx.Node, held: Mapping[fx.Node, Any]) -> Any:
    """What a function or a method makes of these values; what is not `held` is as in the first example."""

    def value(n: fx.Node) -> Any:
        return held[n] if n in held else n.meta["value"][0]

    args, kwargs = fx.node.map_arg(node.args, value), fx.node.map_arg(node.kwargs, value)
    return _called(node, args, kwargs)
