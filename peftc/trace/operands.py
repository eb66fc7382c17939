"""How the keys and the values of an attention lie that is written out: their heads and examples."""

from __future__ import annotations

import itertools

import torch
from torch import fx

from peftc.graph import dataflow
from peftc.graph.sites import PLAIN, TURNED
from peftc.trace.einsums import Layout, is_einsum, layout

PER_KEY = frozenset({"add", "iadd", "add_", "mul", "imul", "mul_"})  # with one number for each key they mask or bias it
SCALING = frozenset({
    "sub", "truediv", "itruediv", "div", "div_", "neg", "float", "half", "to", "type", "type_as", "tanh", "clamp",
    "clip", "max", "maximum", "min", "minimum", "dropout",
}) | PER_KEY  # fmt: skip


def layouts(
    scores: fx.Node, key: fx.Node, total: fx.Node, value: fx.Node, batch: tuple[int, ...]
) -> tuple[Layout, Layout] | None:
    """How the products take keys and values of so many examples; None where they lie otherwise."""
    keys, values = _layout(scores, key, batch, keys=True), _layout(total, value, batch, keys=False)
    return (keys, values) if keys and values and keys.heads == values.heads else None


def _layout(product: fx.Node, operand: fx.Node, batch: tuple[int, ...], *, keys: bool) -> Layout | None:
    """As an einsum says, or as every other product takes its operands."""
    if is_einsum(product):
        return layout(product, operand, batch, keys)
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
    while len(_dims(way[0])) == 3 and (before := _moved_or_scaled(way[0])) is not None:
        way.insert(0, before)
    shape = _dims(way[0])
    if len(shape) != 4 or tuple(value.shape[0] for value in way[0].meta["value"]) != batch:
        return False
    held = {way[0]: torch.arange(batch[0]).view(-1, 1, 1, 1).expand(shape).contiguous()}
    for before, node in itertools.pairwise(way):
        held[node] = dataflow.recomputed(node, held) if dataflow.is_move(node) else held[before]
    examples = held[operand]
    wanted = torch.arange(examples.shape[0]) // (examples.shape[0] // batch[0])
    return bool((examples == wanted[:, None, None]).all())


def _moved_or_scaled(node: fx.Node) -> fx.Node | None:
    """What a node moves, or maps number by number."""
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or not dataflow.holds_tensor(source):
        return None
    scales = dataflow.name_of(node) in SCALING and _dims(source) == _dims(node)
    return source if scales or dataflow.is_move(node) else None


def _dims(node: fx.Node) -> tuple[int, ...]:
    return tuple(node.meta["value"][0].shape)
