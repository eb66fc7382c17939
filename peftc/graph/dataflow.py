"""The data flow of a graph: what a value was made from, and what it becomes, along the plain path."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
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
    """Whether a gradient reaches an input from an item: by numbers, as parts of a stack are apart again.

    Beside what holds tensors of its own, such as a cache, whether autograd says that it may.
    """
    read = node.all_input_nodes
    known = all(isinstance(example(n), (torch.Tensor, int, float, str, torch.dtype, type(None))) for n in read)
    given = {n: numbers(n, seed) if known else _copied(n) for seed, n in enumerate(read)}
    given[source].requires_grad_(given[source].is_floating_point())
    try:
        with torch.enable_grad():
            item = recomputed(node, given)[index]
    except (LookupError, RuntimeError):  # examples of several calls, in sizes that do not fit together
        return True
    if not (isinstance(item, torch.Tensor) and item.requires_grad):
        return False
    weights = torch.arange(1, item.numel() + 1, device=item.device).view(item.shape).to(item.dtype)
    (gradient,) = torch.autograd.grad(item, given[source], weights, allow_unused=True)
    return gradient is not None and (not known or bool(gradient.any()))


def _copied(node: fx.Node) -> Any:
    value = example(node)
    return value.detach().clone() if isinstance(value, torch.Tensor) else copy.deepcopy(value)


def numbers(node: fx.Node, seed: int) -> Any:
    """A node's first example value; a tensor has random numbers from 0 to 1, or zeros where it holds no fractions."""
    value = example(node)
    if not isinstance(value, torch.Tensor):
        return value
    made = torch.zeros(value.shape, dtype=value.dtype, device="cpu")
    return made.uniform_(generator=torch.Generator().manual_seed(seed)) if made.is_floating_point() else made


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


def recomputed(node: fx.Node, held: Mapping[fx.Node, Any]) -> Any:
    """What a function or a method makes of these values; what is not `held` is as in the first example."""

    def value(n: fx.Node) -> Any:
        return held[n] if n in held else n.meta["value"][0]

    args, kwargs = fx.node.map_arg(node.args, value), fx.node.map_arg(node.kwargs, value)
    return _called(node, args, kwargs)
