"""A step of training on a type's own inputs."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from transformers import PreTrainedModel

from tests.sweep.inputs import Inputs, answer

HALVINGS = 16


def trainable(model: PreTrainedModel) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def unlearnt(model: PreTrainedModel, base: PreTrainedModel, inputs: Inputs) -> str:
    """Why it does not train: no step along the gradients lowers a loss, or what is frozen moved; "" where it does."""
    model.train(_trains(base, inputs))
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    first = {name: p.detach().clone() for name, p in trainable(model).items()}
    model.zero_grad()
    start = _loss(model, inputs)
    start.backward()
    slope = sum(float(p.grad.square().sum()) for p in trainable(model).values() if p.grad is not None)
    for halving in range(HALVINGS):
        optimizer = torch.optim.SGD(model.parameters(), lr=float(start) / max(slope, 1e-30) / 2**halving)
        optimizer.step()
        if _loss(model, inputs) < start:
            break
        model.load_state_dict(first, strict=False)
    else:
        return "no step along its gradients lowers a loss"
    if any(not torch.equal(model.get_parameter(name), before) for name, before in frozen.items()):
        return "training moved what is frozen"
    return ""


def _trains(base: PreTrainedModel, inputs: Inputs) -> bool:
    """Whether the base itself runs so in training: some mask spans that are longer."""
    try:
        _loss(copy.deepcopy(base).train(), inputs)
    except ValueError:
        return False
    return True


def _loss(model: PreTrainedModel, inputs: Inputs) -> torch.Tensor:
    """Mean squared distance to a fixed target, with the same dropout every time."""
    torch.manual_seed(4)
    out = answer(model, cacheless(model, inputs), grad=True)
    target = torch.randn(out.shape, generator=torch.Generator().manual_seed(5))
    return (out.float() - target).square().mean()


def cacheless(model: PreTrainedModel, inputs: Inputs) -> Inputs:
    """Inputs as training gives them: a cache that is written in place has no gradients."""
    takes = "use_cache" in inspect.signature(type(model).forward).parameters
    further: dict[str, Any] = {"use_cache": False} if takes else {}
    return {**inputs, **further}
