"""Which features of a linear map arrive somewhere, and where the graph holds them alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from peftc.graph import dataflow

JOINS = frozenset({"cat", "concat", "concatenate", "stack", "hstack", "vstack"})
FOREIGN = -1  # the place of a number that another map made


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
    alone = {node: places for node, places in tensors.items() if FOREIGN not in places}
    first = [node for node, places in alone.items() if final <= _arrived(places, width)]
    closest = min(first, key=lambda node: len(_arrived(tensors[node], width)), default=head)
    return _laid_out(closest, tensors[closest], shape) or _among_others(head, sorted(final))


def _followed(
    way: list[fx.Node], shape: tuple[int, ...], *, changed: bool
) -> tuple[dict[fx.Node, torch.Tensor], set[int]]:
    """The tensors that hold a linear's numbers, with their places in its output, and the features that the rest reads.

    They may hold what other maps made, too.  The end of the way reads what it holds.  `changed`: what is made of one
    tensor in its shape, as a bound is, counts as holding the same numbers.
    """
    held: dict[fx.Node, Any] = {way[0]: torch.arange(math.prod(shape)).view(shape)}
    for node in way[1:]:
        if dataflow.is_move(node) and node.args[0] in held:
            held[node] = dataflow.recomputed(node, held)
        elif dataflow.name_of(node) in JOINS:
            others = {n: _foreign(n) for n in dataflow.tensors(node) if n not in held}
            held[node] = dataflow.recomputed(node, held | others)
        elif changed and (source := _in_its_shape(node)) in held:
            held[node] = held[source]
    tensors = {node: places for node, places in held.items() if isinstance(places, torch.Tensor)}
    read = {n for node in way if node not in held for n in dataflow.sources(node)} | {way[-1]}
    return tensors, set[int]().union(*(_arrived(p, shape[-1]) for n, p in tensors.items() if n in read))


def _foreign(node: fx.Node) -> torch.Tensor:
    return torch.full(dataflow.example(node).shape, FOREIGN, device="cpu")


def _in_its_shape(node: fx.Node) -> fx.Node | None:
    """The one tensor of its own shape that a node reads."""
    given, shape = dataflow.tensors(node), getattr(dataflow.example(node), "shape", ())
    same = [n for n in given if getattr(dataflow.example(n), "shape", None) == shape]
    return same[0] if len(same) == 1 == len(given) else None


def _among_others(head: fx.Node, rows: list[int]) -> Features | None:
    return Features(head, tuple(rows)) if rows == list(range(rows[0], rows[-1] + 1)) else None


def _arrived(held: torch.Tensor, width: int) -> set[int]:
    return set((held[held != FOREIGN] % width).unique().tolist())


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
