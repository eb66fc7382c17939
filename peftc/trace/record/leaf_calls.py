"""What childless modules do while their model runs: what they map, and who else reads their weights."""

from __future__ import annotations

import dis
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch import nn

from peftc.trace.record.calls import Recording, record, record_of_ones
from peftc.trace.record.feeds import FAILURES, POINTS
from peftc.trace.record.inputs import SCENARIOS
from peftc.trace.record.meta import patched
from peftc.trace.record.nested import tensors_in
from peftc.trace.record.observed import Observed
from peftc.trace.record.source import said
from peftc.trace.record.state import unchanged

CLASSES = frozenset({"hasattr", "isinstance", "type"})
DESCRIBES = frozenset({"device", "dim", "dtype", "ndim", "shape", "size"})
Calls = Mapping[nn.Module, tuple[torch.Tensor, Any]]


@dataclass(frozen=True, eq=False)
class Called:
    """module -> its first tensor and what it returned; module -> the class whose forward reads a parameter of it.

    `failed`: module -> why the model that it is in could not be run.
    """

    calls: Calls
    readers: Mapping[nn.Module, str]
    failed: Mapping[nn.Module, str]


@dataclass(frozen=True, eq=False)
class _Notes:
    """What the runs so far have shown."""

    calls: dict[nn.Module, tuple[torch.Tensor, Any]] = field(default_factory=dict)
    readers: dict[nn.Module, str] = field(default_factory=dict)


def called(model: nn.Module, observed: Observed) -> Called:
    """One run of a model on the meta device in each scenario that it has, and one in training; so of those inside it.

    Of modules that are built alike the first stands for all.
    """
    notes, failed = _Notes(), dict[nn.Module, str]()
    for path in ("", *observed.submodels):
        run = model.get_submodule(path)
        try:
            _run(run, observed, notes)
        except FAILURES as refusal:
            failed |= dict.fromkeys(run.modules(), said(refusal))
    return Called(notes.calls, notes.readers, failed)


def _run(model: nn.Module, observed: Observed, notes: _Notes) -> None:
    with unchanged(model):
        for training, scenario in ((True, SCENARIOS[0]), *((False, scenario) for scenario in observed.recordings)):
            record(model.train(training), scenario, POINTS[0], observed.twins, lambda: _noting(notes))


def otherwise(model: nn.Module, observed: Observed) -> tuple[Recording | None, frozenset[str]]:
    """One run on numbers that the examples do not have, and the classes that read another module's parameter in it."""
    notes = _Notes()
    recording = record_of_ones(model, SCENARIOS[0], POINTS[0], observed.twins, lambda: _noting(notes))
    return recording, frozenset(notes.readers.values())


@contextmanager
def _noting(notes: _Notes) -> Iterator[None]:
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
            notes.calls.setdefault(module, (source, result))
        return result

    def reading(module: nn.Module, name: str) -> Any:
        value = read(module, name)
        if isinstance(value, nn.Parameter) and stack and stack[-1] is not module and not _describes(sys._getframe(1)):
            notes.readers.setdefault(module, type(stack[-1]).__name__)
        return value

    with ExitStack() as patches:
        patches.enter_context(patched(nn.Module, "__call__", noted))
        patches.enter_context(patched(nn.Module, "__getattr__", reading))
        yield


def _describes(frame: FrameType) -> bool:
    """Whether an attribute that is read now is asked for no more than its class, its dtype, its device or its sizes."""
    instructions = [i for i in dis.get_instructions(frame.f_code) if i.opname not in ("CACHE", "EXTENDED_ARG")]
    before = (i for i in reversed(instructions) if i.offset < frame.f_lasti)
    asking = next((i for i in before if i.opname != "LOAD_ATTR" and not i.opname.startswith("LOAD_FAST")), None)
    if asking is not None and asking.opname == "LOAD_GLOBAL" and asking.argval in CLASSES:
        return True
    following = next(i for i in instructions if i.offset > frame.f_lasti)
    return following.opname in ("LOAD_ATTR", "LOAD_METHOD") and following.argval in DESCRIBES
