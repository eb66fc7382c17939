"""Values with values inside: outputs, arguments, whatever a forward takes or gives."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from transformers.utils.generic import ModelOutput

PLAIN = (torch.Tensor, int, float, str, bool, type(None), torch.dtype, torch.device, torch.finfo, torch.iinfo)


def is_plain(value: Any) -> bool:
    """Whether a value can be used again as it is: tensors and numbers, not a cache that a call would change."""
    if isinstance(value, (tuple, list)):
        return all(is_plain(v) for v in value)
    return isinstance(value, PLAIN)


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Every tensor in tuples, lists, dicts and dataclasses, in order."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        yield from tensors_in(list(value.values()))
    elif is_dataclass(value) and not isinstance(value, type):
        yield from tensors_in([getattr(value, field.name) for field in fields(value)])


def made_of(value: Any) -> dict[str, Any]:
    """What a dataclass or a named tuple was made of, by name; nothing of another, or one that holds more than that."""
    if isinstance(value, tuple):
        return {name: getattr(value, name) for name in getattr(value, "_fields", ())}
    if not is_dataclass(value) or isinstance(value, type):
        return {}
    given = {field.name: getattr(value, field.name) for field in fields(value) if field.init}
    whole = vars(value).keys() <= given.keys() and getattr(value, "__post_init__", None) is None
    return given if whole or isinstance(value, ModelOutput) else {}


def rebuilt(like: tuple[Any, ...] | list[Any], items: Iterable[Any]) -> Any:
    """These items as a tuple or a list of the class of another, which may name its fields."""
    make: Any = getattr(type(like), "_make", type(like))
    return make(items)


def keyed(like: dict[str, Any], items: dict[str, Any]) -> dict[str, Any]:
    """These items as a dict, or as an output of the class of another."""
    made: dict[str, Any] = type(like)(**items) if isinstance(like, ModelOutput) else items
    return made
