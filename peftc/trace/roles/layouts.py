"""How the keys and the values of an attention lie that is written out: their heads and examples."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from string import ascii_uppercase

import torch
from torch import fx

from peftc.graph import dataflow
from peftc.trace.record.feeds import FAILURES
from peftc.trace.roles.views import View

PER_KEY = frozenset({"add", "iadd", "add_", "mul", "imul", "mul_"})  # with one number for each key they mask or bias it
SCALING = frozenset({
    "sub", "truediv", "itruediv", "div", "div_", "neg", "float", "half", "to", "type", "type_as", "tanh", "clamp",
    "clip", "max", "maximum", "min", "minimum", "dropout",
}) | PER_KEY  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """How an operand holds keys or values: (batch, heads, length, width), its axes permuted by `order`.

    Of an attention in windows it is (batch, heads, windows, length, width).
    """

    order: tuple[int, ...]
    heads: int
    width: int


def layouts(
    view: View, scores: fx.Node, key: fx.Node, total: fx.Node, value: fx.Node, batch: tuple[int, ...]
) -> tuple[Layout, Layout] | None:
    """How the products take keys and values of so many examples; None where they lie otherwise."""
    keys, values = _layout(view, scores, key, batch, keys=True), _layout(view, total, value, batch, keys=False)
    return (keys, values) if keys and values and keys.heads == values.heads else None


def _layout(view: View, product: fx.Node, operand: fx.Node, batch: tuple[int, ...], *, keys: bool) -> Layout | None:
    """As an einsum says, or as every other product takes its operands."""
    if dataflow.name_of(product) == "einsum":
        return _of_einsum(view, product, operand, batch, keys=keys)
    *shared, length, width = range(len(_dims(operand)))
    if keys:
        length, width = width, length
    return _by_axes(view, operand, shared, length, width, batch) if len(shared) > 1 else _folded(operand, width, batch)


def _folded(operand: fx.Node, width: int, batch: tuple[int, ...]) -> Layout | None:
    """Of (batch * heads, …) with the heads of one example together: batch and heads count as two axes."""
    sizes = _sizes(operand, 0)
    heads = sizes[0] // batch[0]
    if sizes != tuple(heads * examples for examples in batch) or not _examples_apart(operand, batch):
        return None
    return Layout((0, 1, 3, 2) if width == 1 else (0, 1, 2, 3), heads, _dims(operand)[width])


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
    if not all(isinstance(value, torch.Tensor) for value in node.meta["value"]):
        return None
    sizes = list(zip(*(value.shape for value in node.meta["value"]), strict=True))
    return next((axis for axis, size in enumerate(sizes[:-1]) if size == batch), None)


def _moved_or_scaled(node: fx.Node) -> fx.Node | None:
    """What a node moves, or maps number by number."""
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or not dataflow.holds_tensor(source):
        return None
    scales = dataflow.name_of(node) in SCALING and _dims(source) == _dims(node)
    return source if scales or dataflow.is_move(node) else None


def _dims(node: fx.Node) -> tuple[int, ...]:
    return tuple(node.meta["value"][0].shape)


def _sizes(node: fx.Node, axis: int) -> tuple[int, ...]:
    """The sizes of an axis at the two example points."""
    return tuple(value.shape[axis] for value in node.meta["value"])


def _of_einsum(view: View, product: fx.Node, operand: fx.Node, batch: tuple[int, ...], *, keys: bool) -> Layout | None:
    """Of an einsum's second operand: keys are along the result's last axis, values along the first one's."""
    given, _, made = str(product.args[0]).replace(" ", "").partition("->")
    first, _, second = given.partition(",")
    unnamed = ascii_uppercase[::-1][: len(_dims(operand)) - len(second.replace("...", ""))]
    first, second, made = (axes.replace("...", unnamed) for axes in (first, second, made))
    spelt = len({*second}) == len(second) and all(axes.isalpha() for axes in (first, second, made))
    if not spelt or {*first} <= {*second}:  # then each query has keys of its own
        return None
    length = made[-1] if keys else first[-1]
    other, result = (first, made) if keys else (made, first)
    width = [axis for axis in second if axis in other and axis not in result]
    shared = [second.index(axis) for axis in second if axis in other and axis in result]
    if length not in second or length in other or len(width) != 1 or len(shared) != len(second) - 2:
        return None
    return _by_axes(view, operand, shared, second.index(length), second.index(width[0]), batch)


def _by_axes(
    view: View, operand: fx.Node, shared: Sequence[int], length: int, width: int, batch: tuple[int, ...]
) -> Layout | None:
    """By the axes of the keys or values, of their widths, and those that both products share."""
    examples = next((axis for axis in shared if _sizes(operand, axis) == batch), None)
    others = [axis for axis in shared if axis != examples]
    heads = _heads(view, operand, others)
    if examples is None or heads is None or len(others) > 2:
        return None
    ordered = (examples, heads, *(axis for axis in others if axis != heads), length, width)
    order = tuple(ordered.index(axis) for axis in range(len(ordered)))
    return Layout(order, _dims(operand)[heads], _dims(operand)[width])


def _heads(view: View, operand: fx.Node, axes: Sequence[int]) -> int | None:
    """Which of these axes has the heads: windows have the same channels, or are more in a longer example."""
    if len(axes) == 1:
        return axes[0]
    sizes, channels = {axis: {*_sizes(operand, axis)} for axis in axes}, _channels(view, operand)
    if channels is None:
        found = [axis for axis in axes if len(sizes[axis]) == 1]
    else:
        found = [axis for axis in axes if _differ(channels, axis)] or [axis for axis in axes if sizes[axis] == {1}]
    return found[0] if len(found) == 1 else None


def _channels(view: View, operand: fx.Node) -> torch.Tensor | None:
    """Which channel of its linear each number of an operand is, 0 for padding; None where it is not moved alone."""
    linears = dataflow.upstream(view.flow, operand, view.is_linear)
    held = {linear: (torch.arange(_dims(linear)[-1]) + 1).expand(_dims(linear)) for linear in linears}
    way = {node for linear in linears for node in dataflow.between(view.flow, linear, operand)}
    for node in sorted(way.difference(linears)):
        if not dataflow.is_move(node) and (source := _moved_or_scaled(node)) in held:
            held[node] = held[source]
            continue
        if node.op not in ("call_function", "call_method") or not held.keys() >= {*dataflow.tensors(node)}:
            return None
        with suppress(*FAILURES):
            held[node] = dataflow.recomputed(node, held)
    channels = held.get(operand)
    return channels if channels is not None and channels.dtype is torch.int64 else None


def _differ(channels: torch.Tensor, axis: int) -> bool:
    """Whether an axis has different channels, but for padding."""
    first = channels.where(channels > 0, channels.max()).amin(axis)
    return bool((channels.amax(axis) > first).any())


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
