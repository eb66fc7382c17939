"""The sizes of the pictures that a model may see: as its config names them, or as its parameters allow."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from peftc.trace.record.feeds import Point

USUAL = 224
BESIDE = (0, 1, 2)  # positions that are no patch's, as a class has
Shape = Callable[["Point"], tuple[int, ...]]


def shapes(model: nn.Module, values: Mapping[str, Any]) -> Iterator[Shape]:
    """Pixels of an image at several sizes, then at one; with frames before them where the config counts those.

    Where the config names no size it is the usual one, then those of which some parameter has a row for each patch.
    """
    frames = (values["num_frames"],) if "num_frames" in values else ()
    yield from _of(values.get("image_size", USUAL), (*frames, values.get("num_channels", 3)))
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if first is None or "image_size" in values:
        return
    for side in (*_sides(model, first.stride[0]), USUAL):
        yield from _of(side, (*frames, values.get("num_channels", first.in_channels)))


def _of(side: Any, before: tuple[int, ...]) -> Iterator[Shape]:
    high, wide = side if isinstance(side, (list, tuple)) else (side, side)
    yield lambda p: (p.batch, *before, high * p.image + p.beyond[0], wide * p.image + p.beyond[1])
    yield lambda p: (p.batch, *before, high, wide)


def _sides(model: nn.Module, patch: int) -> Iterator[int]:
    """Sides of squares of patches; the largest first."""
    rows = {count for p in model.parameters() if p.dim() in (2, 3) for count in p.shape[:-1]}
    grids = {math.isqrt(count - beside) for count in rows for beside in BESIDE if count - beside > 1}
    exact = (g for g in grids if any(g * g + beside in rows for beside in BESIDE))
    yield from (grid * patch for grid in sorted(exact, reverse=True))


def sees(model: nn.Module) -> bool:
    """Whether something in a model convolves over two axes."""
    return any(isinstance(m, nn.Conv2d) for m in model.modules())
