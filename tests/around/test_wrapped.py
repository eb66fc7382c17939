"""Bases that something else has changed: wrapped by the peft library, or with quantised linears."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PromptTuningConfig, TaskType, get_peft_model
from torch import nn

import peftc
from peftc.errors import PeftcError
from peftc.runtime import attach
from peftc.trace import trace_model
from tests.around.subjects import Subject, gradients, output, subjects
from tests.laws import additions, emitted, move, same, spec, trains

pytestmark = pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys")  # of another mixture's names

WRAPS: dict[str, Callable[[], Any]] = {  # the peft library writes into its configs
    "lora": lambda: LoraConfig(target_modules="all-linear"),
    "ia3": lambda: IA3Config(target_modules="all-linear", feedforward_modules=[]),
    "prompt": lambda: PromptTuningConfig(task_type=TaskType.FEATURE_EXTRACTION, num_virtual_tokens=2),
}


@subjects()
@pytest.mark.parametrize("wrap", WRAPS)
def test_a_base_that_the_peft_library_wrapped_is_refused(subject: Subject, wrap: str) -> None:
    wrapped: Any = get_peft_model(subject.base(), WRAPS[wrap]())
    classes = [type(module) for module in wrapped.modules()]
    with pytest.raises(PeftcError, match=r"the peft library has changed this model: .*\nhint: merge or unload"):
        peftc.attach(wrapped, spec(subject.entries, subject.tiny))
    assert classes == [type(module) for module in wrapped.modules()]


@subjects()
def test_unloaded_as_the_hint_says(subject: Subject) -> None:
    freed: Any = get_peft_model(subject.base(), WRAPS["lora"]()).unload()
    attach(freed, subject.artifact())
    move(additions(freed))
    given = subject.given(padded=True)
    assert same(output(freed, given), output(subject.moved(), given))


class Int8Linear(nn.Linear):
    """x -> x (scale * W)ᵀ + b with W in eight bits and one scale per row: what weight-only quantisation keeps."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        weight = linear.weight.detach()
        self.bias = linear.bias
        self.register_buffer("scale", weight.abs().amax(dim=1, keepdim=True) / 127)
        narrow = (weight / self.get_buffer("scale")).round().to(torch.int8)
        self.weight = nn.Parameter(narrow, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.get_buffer("scale").to(x.dtype), self.bias)


def by_hand(model: Any) -> None:
    for name, module in list(model.named_modules()):
        if in_a_layer(module, name):
            model.set_submodule(name, Int8Linear(module))


def in_a_layer(module: nn.Module, name: str) -> bool:
    return type(module) is nn.Linear and ".layer" in name


def narrow(model: Any) -> int:
    """How many of its weights are kept in eight bits."""
    return sum(p.dtype == torch.int8 or type(p.data) is not torch.Tensor for p in model.parameters())


@subjects()
def test_a_quantised_base(subject: Subject, tmp_path: Path) -> None:
    runs_quantised(subject, by_hand, tmp_path)


def runs_quantised(subject: Subject, quantise: Callable[[Any], None], tmp_path: Path) -> None:
    """Its linears stay calls: the model runs, and gradients reach the additions through them."""
    base, given = subject.base(), subject.given(padded=True)
    quantise(base)
    count, expected = narrow(base), output(base, given)
    assert count >= 8 and not same(expected, output(subject.base(), given))
    model = attach(base, emitted(spec(subject.entries, subject.tiny), trace_model(base))[1])
    with model.disable_adapter():
        assert same(output(model, given), expected)
    move(additions(model))
    assert not same(output(model, given), expected)
    found = gradients(model, given)
    assert found.keys() == trains(model) == model.added_names()
    assert all(gradient.isfinite().all() and gradient.any() for gradient in found.values())
    assert narrow(model) == narrow(copy.deepcopy(model)) == count
    model.save_adapter(tmp_path)
    with pytest.raises(ValueError, match="another: base"):
        subject.moved().load_adapter(tmp_path)
