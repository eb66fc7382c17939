"""Which calls of the model's own code run while it is traced, and where in its source each one stands."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import CodeType, FrameType

import torch

OWN = tuple(f"{folder}/" for folder in (Path(torch.__file__).parent, Path(__file__).parent))
Position = tuple[int | None, int | None, int | None, int | None]


def is_user(code: CodeType) -> bool:
    """Whether a frame runs a model's code, not torch's or peftc's."""
    return not code.co_filename.startswith(OWN)


def caller(frame: FrameType) -> FrameType:
    """The model's own frame that asked for a node."""
    while not is_user(frame.f_code) and frame.f_back is not None:
        frame = frame.f_back
    return frame


def user_frames(frame: FrameType | None, until: CodeType) -> Iterator[tuple[CodeType, Position]]:
    """The model's running calls from the innermost on, with where each stands, as far as some code's own."""
    while frame is not None and frame.f_code is not until:
        if is_user(frame.f_code):
            yield frame.f_code, _positions(frame.f_code)[frame.f_lasti // 2]
        frame = frame.f_back


@cache
def _positions(code: CodeType) -> tuple[Position, ...]:
    """Line and column of each instruction: they stay when Python specialises a call, unlike its offset."""
    return tuple(code.co_positions())
