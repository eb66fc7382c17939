"""What a node computes on the meta device: shapes and dtypes decide it, so equal nodes of many traces run once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import fx
from transformers.cache_utils import Cache, CacheLayerMixin

from peftc.graph.branches import inputs
from peftc.trace.record.nested import rebuilt, tensors_in

PLAIN = (int, float, bool, str, type(None), type(...), torch.dtype, torch.device, type)
Key = tuple[Hashable, ...]
Points = tuple[Any, Any]
Held = tuple[Mapping[fx.Node, Any], Mapping[fx.Node, Any]]
"""Objects that a node may change, as a cache, by the nodes that have them or parts of them, at both points."""


class Unknown(Exception):
    """A value of which shapes and dtypes do not say everything, as of a cache, or a function."""


@dataclass(frozen=True)
class Given:
    """The tensor at this place among those that a node is given: what it returns as it is."""

    place: int


class Remembered:
    """The results of a unit's nodes under one mode of it, by what they were computed from."""

    def __init__(self) -> None:
        self.found: dict[Key, tuple[Points, tuple[list[Any], list[Any]]]] = {}

    def points(
        self, kind: str, target: Any, args: Any, kwargs: Any, held: Held, compute: Callable[[Held], Points]
    ) -> tuple[Points, Held]:
        """What `compute` gives, and what it leaves of a copy of `held`: of an earlier node that had all the same.

        A node that changes the shape of what it was given, or that returns no tensor, is always computed.
        """
        given = inputs((args, kwargs))
        told = partial(_told, kind, target, args, kwargs, given, held)
        key = told()
        if key is None or key not in self.found:
            copies = _copied(held[0]), _copied(held[1])
            points = compute(copies)
            if key is None or not _lasts(points) or key != told():
                return points, copies
            self.found[key] = _without(points, given), (list(copies[0].values()), list(copies[1].values()))
        points, left = self.found[key]
        first, second = (dict(zip(held[0], own, strict=True)) for own in left)
        return _again(points, given), (first, second)


def _copied(held: Mapping[fx.Node, Any]) -> Mapping[fx.Node, Any]:
    """Copies of objects, of which parts of one another are so again."""
    return dict(zip(held, copy.deepcopy(list(held.values())), strict=True))


def _told(kind: str, target: Any, args: Any, kwargs: Any, given: Sequence[fx.Node], held: Held) -> Key | None:
    """All that a result depends on; None where that is not known.  No mode need see how a shape is asked for."""
    nodes = list(held[0])
    places = (nodes.index(node) if node in held[0] else None for node in given)
    try:
        with torch._C.DisableTorchFunction():
            return (kind, target, _key(args), _key(kwargs), *places, *(_whole(list(own.values())) for own in held))
    except Unknown:
        return None


def _whole(objects: list[Any]) -> Hashable:
    """Objects by what they hold, and by which of their parts are the same."""
    seen: dict[int, int] = {}

    def parts(value: Any) -> Iterator[int]:
        if isinstance(value, Cache | CacheLayerMixin | dict | list):
            yield seen.setdefault(id(value), len(seen))
            inner = value if isinstance(value, list) else (value if isinstance(value, dict) else vars(value)).values()
            for part in inner:
                yield from parts(part)

    return _key(objects), tuple(parts(objects))


def signature(value: Any) -> Hashable:
    """Shapes, dtypes and numbers of a value: equal for what no trace tells apart; its own where there is more to it."""
    try:
        return _key(value)
    except Unknown:
        return object()


def _key(value: Any) -> Hashable:
    if isinstance(value, fx.Node):
        return tuple(_key(point) for point in value.meta["value"])
    if isinstance(value, torch.Tensor):
        if not value.is_meta:
            raise Unknown
        return value.shape, value.stride(), value.dtype, value.layout
    if isinstance(value, (tuple, list)):
        return type(value), *map(_key, value)
    if isinstance(value, slice):
        return slice, _key(value.start), _key(value.stop), _key(value.step)
    if isinstance(value, dict):
        return dict, *((name, _key(item)) for name, item in value.items())
    if isinstance(value, PLAIN):
        return type(value), value
    if isinstance(value, Cache | CacheLayerMixin):
        return type(value), _key(vars(value))
    raise Unknown


def _lasts(points: Points) -> bool:
    """Whether both results are tensors of the meta device, alone or in tuples."""
    made = [list(tensors_in(point)) for point in points]
    return all(made) and all(t.is_meta for found in made for t in found) and _plain(points)


def _plain(value: Any) -> bool:
    if type(value) in (tuple, list):
        return all(map(_plain, value))
    return type(value) in (torch.Tensor, *PLAIN)


def _without(points: Points, given: Sequence[fx.Node]) -> Points:
    """Results in which tensors that were given stand by their places."""
    first, second = (_put(point, _tensors(given, i)) for i, point in enumerate(points))
    return first, second


def _put(value: Any, given: Sequence[torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        return next((Given(place) for place, tensor in enumerate(given) if tensor is value), value)
    return rebuilt(value, (_put(item, given) for item in value)) if isinstance(value, (tuple, list)) else value


def _again(points: Points, given: Sequence[fx.Node]) -> Points:
    """Results with tensors of their own, which may be changed in place, and with those that are given now."""
    first, second = (_fresh(point, _tensors(given, i)) for i, point in enumerate(points))
    return first, second


def _fresh(value: Any, given: Sequence[torch.Tensor]) -> Any:
    if isinstance(value, Given):
        return given[value.place]
    if isinstance(value, torch.Tensor):
        return value.detach()
    return rebuilt(value, (_fresh(item, given) for item in value)) if isinstance(value, (tuple, list)) else value


def _tensors(given: Sequence[fx.Node], point: int) -> list[torch.Tensor]:
    return [tensor for node in given for tensor in tensors_in(node.meta["value"][point])]
