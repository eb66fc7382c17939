"""How the keys and the values of an attention lie that is written out: their heads and examples."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import fx

from peftc.graph import dataflow
from peftc.graph.sites import PLAIN, TURNED

PER_KEY = frozenset({"add", "iadd", "add_", "mul", "imul", "mul_"})  # with one number for each key they mask or bias it
SCALING = frozenset({
    "sub", "truediv", "itruediv", "div", "div_", "neg", "float", "half", "to", "type", "type_as", "tanh", "clamp",
    "clip", "max", "maximum", "min", "minimum", "dropout",
}) | PER_KEY  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """How an operand holds keys or values: it is (batch, heads, length, width), its axes permuted by `order`."""

    order: tuple[int, ...]
    heads: int
    width: int


def layouts(
    scores: fx.Node, key: fx.Node, total: fx.Node, value: fx.Node, batch: tuple[int, ...]
) -> tuple[Layout, Layout] | None:
    """How the products take keys and values of so many examples; None where they lie otherwise."""
    keys, values = _layout(scores, key, batch, keys=True), _layout(total, value, batch, keys=False)
    return (keys, values) if keys and values and keys.heads == values.heads else None


def _layout(product: fx.Node, operand: fx.Node, batch: tuple[int, ...], *, keys: bool) -> Layout | None:
    """As an einsum says, or as every other product takes its operands."""
    if dataflow.name_of(product) == "einsum":
        return _of_einsum(product, operand, batch, keys=keys)
    heads, width = _heads(operand, batch), _dims(operand)[-2 if keys else -1]
    return Layout(TURNED if keys else PLAIN, heads, width) if heads is not None else None


def _heads(operand: fx.Node, batch: tuple[int, ...]) -> int | None:
    """The number of heads of (batch, heads, …), or of (batch * heads, …) with the heads of one example together."""
    shape = _dims(operand)
    sizes = tuple(value.shape[0] for value in operand.meta["value"])
    if len(shape) == 4:
        return shape[1] if sizes == batch else None
    heads = sizes[0] // batch[0]
    if len(shape) != 3 or sizes != tuple(heads * examples for examples in batch):
        return None
    return heads if _examples_apart(operand, batch) else None


def _examples_apart(operand: fx.Node, batch: tuple[int, ...]) -> bool:
    """Whether the first axis of a folded operand runs through the heads of one example before the next one's."""
    way = [operand]
    while (axis := _axis(way[0], batch)) is None and (before := _moved_or_scaled(way[0])) is not None:
        way.insert(0, before)
    if axis is None:
        return False
    shape = _dims(way[0])
    held = {way[0]: torch.arange(batch[0]).view(-1, *(1 for _ in shape[axis + 1 :])).expand(shape).contiguous()}
    for before, node in itertools.pairwise(way):
        held[node] = dataflow.recomputed(node, held) if dataflow.is_move(node) else held[before]
    examples = held[operand]
    wanted = torch.arange(examples.shape[0]) // (examples.shape[0] // batch[0])
    return bool((examples == wanted[:, None, None]).all())


def _axis(node: fx.Node, batch: tuple[int, ...]) -> int | None:
    """The axis that has the examples alone; None where none has."""
    sizes = list(zip(*(value.shape for value in node.meta["value"]), strict=True))
    return next((axis for axis, size in enumerate(sizes[:-1]) if size == batch), None)


def _moved_or_scaled(node: fx.Node) -> fx.Node | None:
    """What a node moves, or maps number by number."""
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or not isinstance(source.meta["value"][0], torch.Tensor):
        return None  # parts of one tensor come in a tuple
    scales = dataflow.name_of(node) in SCALING and _dims(source) == _dims(node)
    return source if scales or dataflow.is_move(node) else None


def _dims(node: fx.Node) -> tuple[int, ...]:
    return tuple(node.meta["value"][0].shape)


def _of_einsum(product: fx.Node, operand: fx.Node, batch: tuple[int, ...], *, keys: bool) -> Layout | None:
    """Of an einsum's second operand: keys are along the result's last axis, values along the first one's."""
    given, _, made = str(product.args[0]).replace(" ", "").partition("->")
    first, _, second = given.partition(",")
    if len(second) != 4 or len({*second}) != 4 or not first.isalpha() or not made.isalpha() or not second.isalpha():
        return None
    length = made[-1] if keys else first[-1]
    other, result = (first, made) if keys else (made, first)
    width = [axis for axis in second if axis in other and axis not in result]
    shared = [axis for axis in second if axis in other and axis in result]
    if length not in second or length in other or len(width) != 1 or len(shared) != 2:
        return None
    return _by_axes(operand, second, (*shared, length, *width), batch)


def _by_axes(operand: fx.Node, held: str, axes: tuple[str, ...], batch: tuple[int, ...]) -> Layout | None:
    sizes = {axis: tuple(value.shape[held.index(axis)] for value in operand.meta["value"]) for axis in axes}
    one, other, length, width = axes
    if batch not in (sizes[one], sizes[other]):
        return None
    ordered = (one, other, length, width) if sizes[one] == batch else (other, one, length, width)
    order = tuple(ordered.index(axis) for axis in held)
    return Layout(order, sizes[ordered[1]][0], sizes[width][0])


def sized_by(node: fx.Node) -> set[fx.Node]:
    """The tensors whose sizes the numbers that a node is given are made of."""
    found, numbers = set[fx.Node](), [n for n in node.all_input_nodes if not dataflow.holds_tensor(n)]
    while numbers:
        for read in numbers.pop().all_input_nodes:
            if dataflow.holds_tensor(read):
                found.add(read)
            else:
                numbers.append(read)
    return found
