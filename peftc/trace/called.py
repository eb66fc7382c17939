"""What childless modules do while their model runs: what they map, and who else reads their weights."""

from __future__ import annotations

import dis
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch import nn

from peftc.trace.calls import Recording, watching
from peftc.trace.feeds import FAILURES, POINTS
from peftc.trace.inputs import SCENARIOS, inputs
from peftc.trace.meta import patched
from peftc.trace.nested import tensors_in
from peftc.trace.repeats import Twins
from peftc.trace.state import unchanged

DESCRIBES = frozenset({"device", "dim", "dtype", "ndim", "shape", "size"})


@dataclass(frozen=True, eq=False)
class Called:
    """module -> its first tensor and what it returned; module -> the class whose forward reads a parameter of it.

    `failed`: why the model could not be run.
    """

    calls: dict[nn.Module, tuple[torch.Tensor, Any]] = field(default_factory=dict)
    readers: dict[nn.Module, str] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)


def called(model: nn.Module, twins: Twins) -> Called:
    """One run of a model on the meta device in each mode; of modules that are built alike the first stands for all."""
    found = Called()
    try:
        for training in (True, False):
            with unchanged(model):
                _run(model.train(training), twins, found)
    except FAILURES as refusal:
        found.failed.append(" ".join(str(refusal).split()))
    return found


def _run(model: nn.Module, twins: Twins, found: Called) -> None:
    given = inputs(model, SCENARIOS[0], POINTS[0], lambda: watching(Recording(), twins, True))
    with torch.no_grad(), watching(Recording(), twins, True), _noting(found):
        model(**given or {})


@contextmanager
def _noting(found: Called) -> Iterator[None]:
    call, read = nn.Module.__call__, nn.Module.__getattr__
    stack: list[nn.Module] = []

    def noted(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        stack.append(module)
        try:
            result = call(module, *args, **kwargs)
        finally:
            stack.pop()
        source = next(tensors_in((args, kwargs)), None)
        if source is not None and not any(True for _ in module.children()):
            found.calls.setdefault(module, (source, result))
        return result

    def reading(module: nn.Module, name: str) -> Any:
        value = read(module, name)
        if isinstance(value, nn.Parameter) and stack and stack[-1] is not module and not _describes(sys._getframe(1)):
            found.readers.setdefault(module, type(stack[-1]).__name__)
        return value

    with ExitStack() as patches:
        patches.enter_context(patched(nn.Module, "__call__", noted))
        patches.enter_context(patched(nn.Module, "__getattr__", reading))
        yield


def _describes(frame: FrameType) -> bool:
    """Whether an attribute that is read now is asked for no more than its dtype, its device or its sizes."""
    following = (i for i in dis.get_instructions(frame.f_code) if i.offset > frame.f_lasti and i.opname != "CACHE")
    return next(following).argval in DESCRIBES
