"""Which parameter of a unit is its attention's mask: one that hides, read as a masked gate reads it, the same keys."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from peftc.graph import dataflow
from peftc.graph.branches import choose
from peftc.modules import MaskedGate
from peftc.trace.record.feeds import FAILURES, POINTS
from peftc.trace.roles.views import View, parameter_behind


def mask_behind(view: View, mask: fx.Node | None) -> str | None:
    """The parameter that a mask is made from; None where it says otherwise which keys are real, or not that alone."""
    if mask is None or (given := parameter_behind(view, mask)) is None:
        return None
    return str(given.target) if mask is given or _says_the_same(view, given, mask) else None


def _says_the_same(view: View, given: fx.Node, mask: fx.Node) -> bool:
    """Whether the mask hides the last key where the parameter says that of it, and that alone."""
    told = _of_last_hidden(given)
    found = None if told is None else _followed(view, given, mask, told)
    if found is None:
        return False
    real = MaskedGate(1).real_tokens(found)
    return bool(real[:, :-1].all()) and not bool(real[:, -1].any())


def _of_last_hidden(given: fx.Node) -> torch.Tensor | None:
    """A mask that hides the last key of each example, as a masked gate reads it; None where it reads no such tensor."""
    value = given.meta["value"][0]
    if not isinstance(value, torch.Tensor) or value.dim() not in (2, 4) or value.shape[-1] < 2:
        return None
    if value.dim() == 2 and [v.shape[0] for v in given.meta["value"]] != [point.batch for point in POINTS]:
        return None
    real = torch.ones(value.shape, dtype=torch.bool, device="cpu")
    real[..., -1] = False
    if value.dim() == 2 or value.dtype == torch.bool:
        return real.to(value.dtype)
    if not value.is_floating_point():
        return None
    return torch.zeros(value.shape, dtype=value.dtype, device="cpu").masked_fill(~real, torch.finfo(value.dtype).min)


def _followed(view: View, given: fx.Node, mask: fx.Node, told: torch.Tensor) -> torch.Tensor | None:
    """What the mask is where this is given."""
    held: dict[fx.Node, Any] = {given: told}
    for node in dataflow.between(view.flow, given, mask)[1:]:
        try:
            held[node] = _chosen(node, held) if node.target is choose else dataflow.recomputed(node, held)
        except FAILURES:
            return None
    found = held[mask]
    return found if isinstance(found, torch.Tensor) and found.dim() > 1 and not found.is_meta else None


def _chosen(node: fx.Node, held: dict[fx.Node, Any]) -> Any:
    condition, *sides = node.args
    asked = held.get(condition, dataflow.example(condition)) if isinstance(condition, fx.Node) else None
    first, second = (held[side] if isinstance(side, fx.Node) and side in held else None for side in sides)
    return second if first is None or asked is False else first
