"""Which parameters of a model a gradient reaches: some only decide, as what corrects a router's choice of experts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from peftc.graph.sites import Layer
from peftc.trace.feeds import FAILURES, POINTS
from peftc.trace.inputs import SCENARIOS, inputs
from peftc.trace.meta import calls_answered, shapes_only, values_as_zeros
from peftc.trace.nested import tensors_in


def reached(model: nn.Module) -> set[nn.Parameter]:
    """The parameters behind the outputs of a model on the meta device; all of them where its forward cannot be run."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in before:
            parameter.requires_grad_(parameter.is_floating_point())
        return set(_behind(list(tensors_in(_answer(model)))))
    except FAILURES:
        return {parameter for parameter, _ in before}
    finally:
        for parameter, flag in before:
            parameter.requires_grad_(flag)


def unreached(model: nn.Module, layers: Sequence[Layer], reached: Set[nn.Parameter]) -> dict[str, str]:
    """The layers of towers that no gradient reaches: what runs without one, as to cut the input in pieces."""
    found = [(layer, not reached.isdisjoint(model.get_submodule(layer.path).parameters())) for layer in layers]
    trained = {layer.tower for layer, holds in found if holds}
    return {layer.path: "no gradient reaches it" for layer in layers if layer.tower not in trained}


def _answer(model: nn.Module) -> Any:
    given = inputs(model, SCENARIOS[0], POINTS[0], nullcontext)
    with torch.enable_grad(), shapes_only(), values_as_zeros(), calls_answered():
        return model(**given or {})


def _behind(outputs: list[torch.Tensor]) -> Iterator[nn.Parameter]:
    """The leaves of the autograd graph of some tensors."""
    waiting = [output.grad_fn for output in outputs if output.grad_fn is not None]
    seen: set[Any] = set(waiting)
    while waiting:
        function: Any = waiting.pop()
        if (leaf := getattr(function, "variable", None)) is not None:
            yield leaf
        following = {f for f, _ in function.next_functions if f is not None} - seen
        seen |= following
        waiting += following
