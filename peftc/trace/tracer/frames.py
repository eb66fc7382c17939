"""Which calls of the model's own code run while it is traced, and where in its source each one stands."""

from __future__ import annotations

import dis
import operator
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch

from peftc.graph.branches import Size
from peftc.trace.tracer.values import Value

OWN = tuple(f"{folder}/" for folder in (Path(torch.__file__).parent, Path(__file__).parents[1]))
STANDS_FOR_TORCHS = str(Path(__file__).with_name("torchs_attention.py"))
NO_RESULT = ("UNPACK", "STORE", "LOAD_FAST", "FOR_ITER")  # what is stored behind one is no new value, or one of several
Position = tuple[int | None, int | None, int | None, int | None]


def is_user(code: CodeType) -> bool:
    """Whether a frame runs a model's code, not torch's or peftc's."""
    return code.co_filename == STANDS_FOR_TORCHS or not code.co_filename.startswith(OWN)


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


def source_key(kind: str, target: Any, args: Any, frame: FrameType, until: CodeType) -> tuple[Any, ...]:
    """Where in the source a node was made: equal for the same place in another trace."""
    item = args[1] if target is operator.getitem and isinstance(args[1], int) else None
    where = tuple((code.co_qualname, position) for code, position in user_frames(frame, until))
    return (kind, target if isinstance(target, str) else getattr(target, "__name__", ""), item, where)


def note_names(frame: FrameType | None, until: CodeType) -> None:
    """Remember which variables of the running forwards hold which proxies, the innermost call first.

    What a call was given, its own name for it, comes after the names where the value was made.
    """
    while frame is not None and frame.f_code is not until:
        held = frame.f_locals if is_user(frame.f_code) else {}
        for name, size in ((n, v) for n, v in held.items() if type(v) is Size and v.name is None and n != "_"):
            size.name = name
        for name, meta in ((n, v.node.meta) for n, v in held.items() if type(v) is Value):
            names = meta["names"] if _made_in(frame.f_code, meta["key"]) else meta.setdefault("given", [])
            if name not in names:
                names.append(name)
        frame = frame.f_back


def tuples(frame: FrameType, args: tuple[Any, ...]) -> dict[int, tuple[str, int]]:
    """Where a call is handed a tuple that the code around it has put together, whole or item by item.

    Position -> the variable, and how many items it has.
    """
    held = {n: v for n, v in frame.f_locals.items() if type(v) is tuple and any(type(item) is Value for item in v)}
    places = [(name, items, place) for name, items in held.items() for place in range(len(args))]
    return {place: (name, len(items)) for name, items, place in places if _hands_on(items, args[place:])}


def _hands_on(items: tuple[Any, ...], args: tuple[Any, ...]) -> bool:
    apart = len(args) >= len(items) and all(a is b for a, b in zip(items, args, strict=False))
    return args[0] is items or apart


def stored(frame: FrameType) -> str | None:
    """The variable of a running call that takes what its present instruction makes."""
    return _stores(frame.f_code).get(frame.f_lasti)


@cache
def _stores(code: CodeType) -> dict[int, str]:
    """The offset of each instruction whose result goes straight into a variable -> that variable."""
    steps = pairwise(dis.get_instructions(code))
    return {a.offset: b.argval for a, b in steps if b.opname == "STORE_FAST" and not a.opname.startswith(NO_RESULT)}


@cache
def _made_in(code: CodeType, key: tuple[Any, ...]) -> bool:
    """Whether a call of this code made what has this key; what the unit itself is given is anyone's."""
    return len(key) < 4 or code.co_qualname in {name for name, _ in key[3]}


@cache
def _positions(code: CodeType) -> tuple[Position, ...]:
    """Line and column of each instruction: they stay when Python specialises a call, unlike its offset."""
    return tuple(code.co_positions())
