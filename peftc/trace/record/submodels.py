"""Models inside a model that its own runs do not reach, as what sees its pictures: they are run by themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from typing import TypeVar

from torch import nn
from transformers import PreTrainedModel

from peftc.errors import PeftcError
from peftc.graph.sites import within
from peftc.trace.record.feeds import FAILURES, feed, parameters
from peftc.trace.record.source import said

Runs = TypeVar("Runs")


def inner_runs(
    model: nn.Module, ran: Set[nn.Module], run: Callable[[nn.Module], Runs]
) -> tuple[Mapping[str, Runs], Mapping[str, str]]:
    """The runs of the outermost models inside a model in which nothing ran, by path; path -> why another has none.

    Each is given what its own class takes, where the model around it takes that too.
    """
    found: dict[str, Runs] = {}
    refused: dict[str, str] = {}
    for path, inner in model.named_modules():
        inside = isinstance(inner, PreTrainedModel) and not any(within(path, other) for other in found)
        if not inside or not ran.isdisjoint(inner.modules()):
            continue
        if why := _unfed(model, inner):
            refused[path] = why
            continue
        try:
            found[path] = run(inner)
        except PeftcError as error:
            refused[path] = error.problems[0].message
    return found, refused


def _unfed(model: nn.Module, inner: nn.Module) -> str | None:
    """Why a model inside another is given nothing, or None."""
    try:
        reads = feed(inner)
    except FAILURES as refusal:
        return f"{type(inner).__name__} answers no example inputs: {said(refusal)}"
    foreign = [given.name for given in reads.inputs if given.name not in parameters(model)]
    return f"{type(inner).__name__} reads {foreign[0]}, which {type(model).__name__} does not take" if foreign else None
