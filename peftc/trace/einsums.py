"""Products of an attention that are written as einsums: which axis of keys or values is which."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from peftc.graph import dataflow

Order = tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """How an operand holds keys or values: it is (batch, heads, length, width), its axes permuted by `order`."""

    order: Order
    heads: int
    width: int


def is_einsum(node: fx.Node) -> bool:
    return dataflow.name_of(node) == "einsum"


def layout(product: fx.Node, operand: fx.Node, batch: tuple[int, ...], keys: bool) -> Layout | None:
    """Of the second operand of an attention's einsum: keys are along the result's last axis, values the first's."""
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
    return _laid_out(operand, second, (*shared, length, *width), batch)


def _laid_out(operand: fx.Node, held: str, axes: tuple[str, ...], batch: tuple[int, ...]) -> Layout | None:
    sizes = {axis: tuple(value.shape[held.index(axis)] for value in operand.meta["value"]) for axis in axes}
    one, other, length, width = axes
    if batch not in (sizes[one], sizes[other]):
        return None
    ordered = (one, other, length, width) if sizes[one] == batch else (other, one, length, width)
    order = tuple(ordered.index(axis) for axis in held)
    return Layout(order, sizes[ordered[1]][0], sizes[width][0])
