"""Which parameters of a model a gradient reaches: some only decide, as what corrects a router's choice of experts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import nullcontext, suppress
from typing import Any

import torch
from torch import nn

from peftc.graph.closure import closure
from peftc.graph.sites import Layer
from peftc.trace.record.feeds import FAILURES, POINTS, feed
from peftc.trace.record.inputs import SCENARIOS, inputs
from peftc.trace.record.meta import calls_answered, shapes_only, values_as
from peftc.trace.record.nested import tensors_in
from peftc.trace.record.numbers import numbered


def reached(model: nn.Module, submodels: Sequence[str] = ()) -> set[nn.Parameter]:
    """The parameters behind the outputs of a model on the meta device; all of them where its forward cannot be run.

    Of a model inside it that runs by itself, those behind what the outer one makes of its inputs, where it says that.
    """
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in before:
            parameter.requires_grad_(parameter.is_floating_point())
        return _reached(model, [model]).union(*(_handed(model, model.get_submodule(path)) for path in submodels))
    finally:
        for parameter, flag in before:
            parameter.requires_grad_(flag)


def unreached(model: nn.Module, layers: Sequence[Layer], reached: Set[nn.Parameter]) -> dict[str, str]:
    """path -> why, of the layers of towers that no gradient reaches, as one that cuts the input in pieces."""
    trained = {layer.tower for layer in layers if reaches(model, layer, reached)}
    return {layer.path: "no gradient reaches it" for layer in layers if layer.tower not in trained}


def reaches(model: nn.Module, layer: Layer, reached: Set[nn.Parameter]) -> bool:
    """Whether some parameter of a layer is among these."""
    return not reached.isdisjoint(model.get_submodule(layer.path).parameters())


def _handed(model: nn.Module, inner: nn.Module) -> set[nn.Parameter]:
    """What a gradient reaches of a model inside another, by the methods that hand the inputs of the inner one on."""
    first = feed(inner).inputs[0].name
    names = [name for name in dir(type(model)) if name.startswith("get_") and name.endswith("_features")]
    methods = [getattr(model, name) for name in names]
    ways = [_features(method) for method in methods if first in inspect.signature(method).parameters]
    return _reached(inner, ways, [inner])


def _features(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method that says what is made of a picture or a sound, without the states behind that it says too."""

    def said(**given: Any) -> Any:
        answer = method(**given)
        return getattr(answer, "pooler_output", answer)

    return said


def _reached(
    model: nn.Module, ways: Sequence[Callable[..., Any]], otherwise: Sequence[Callable[..., Any]] = ()
) -> set[nn.Parameter]:
    """What stands behind the answers to the inputs of a model; of `otherwise` where no way takes them; else all."""
    found = []
    for way in ways:
        with suppress(*FAILURES), numbered(model) as own:
            if said := list(tensors_in(_answer(model, way))):
                found.append({own.get(leaf, leaf) for leaf in _behind(said)})
    if found:
        return set[nn.Parameter]().union(*found)
    return _reached(model, otherwise) if otherwise else set(model.parameters())


def _answer(model: nn.Module, way: Callable[..., Any]) -> Any:
    """What a function makes of a model's inputs."""
    given = inputs(model, SCENARIOS[0], POINTS[0], nullcontext)
    with torch.enable_grad(), shapes_only(), values_as(0), calls_answered(), feed(model).beside(model):
        return way(**given or {})


def _behind(outputs: list[torch.Tensor]) -> Iterator[nn.Parameter]:
    """The leaves of the autograd graph of some tensors."""
    ends: list[Any] = [output.grad_fn for output in outputs if output.grad_fn is not None]
    functions = closure(ends, lambda function: (f for f, _ in function.next_functions if f is not None))
    leaves = (getattr(function, "variable", None) for function in functions)
    return (leaf for leaf in leaves if leaf is not None)
