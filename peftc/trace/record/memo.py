"""What a node computes on the meta device: shapes and dtypes decide it, so equal nodes of many traces run once."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import fx
from transformers.cache_utils import Cache, CacheLayerMixin

from peftc.graph.branches import inputs
from peftc.trace.record.nested import rebuilt, tensors_in

PLAIN = (int, float, bool, str, type(None), type(...), torch.dtype, torch.device, type)
Key = tuple[Hashable, ...]
Points = tuple[Any, Any]


class Unknown(Exception):
    """A value of which shapes and dtypes do not say everything, as of a cache, or a function."""


class Remembered:
    """The results of a unit's nodes under one mode of it, by what they were computed from."""

    def __init__(self) -> None:
        self.found: dict[Key, Points] = {}

    def points(self, kind: str, target: Any, args: Any, kwargs: Any, compute: Callable[[], Points]) -> Points:
        """What `compute` gives, from an earlier node where that had the same arguments.

        A node that returns what it was given, as one that works in place does, or no tensor, is always computed.
        """
        try:
            key = (kind, target, _key(args), _key(kwargs))
        except Unknown:
            return compute()
        if key not in self.found:
            points = compute()
            if not _lasts(points, args, kwargs):
                return points
            self.found[key] = points
        first, second = (_fresh(point) for point in self.found[key])
        return first, second


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


def _lasts(points: Points, args: Any, kwargs: Any) -> bool:
    """Whether both results are new tensors of the meta device, alone or in tuples."""
    given = {id(tensor) for node in inputs((args, kwargs)) for tensor in tensors_in(node.meta["value"])}
    made = [list(tensors_in(point)) for point in points]
    return all(made) and all(t.is_meta and id(t) not in given for found in made for t in found) and _plain(points)


def _plain(value: Any) -> bool:
    if type(value) in (tuple, list):
        return all(map(_plain, value))
    return type(value) in (torch.Tensor, *PLAIN)


def _fresh(value: Any) -> Any:
    """The value with tensors of its own, which may be changed in place."""
    if isinstance(value, torch.Tensor):
        return value.detach()
    return rebuilt(value, map(_fresh, value)) if isinstance(value, (tuple, list)) else value
