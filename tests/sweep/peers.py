"""The same models under huggingface/peft's own defaults: LoRA where it knows the targets, and prefix tuning."""

from __future__ import annotations

import copy
from typing import Any

import torch
from peft import LoraConfig, PrefixTuningConfig, TaskType, get_peft_model
from transformers import PreTrainedModel

from tests.sweep.inputs import answer, inputs_of
from tests.sweep.registry import Type

TASKS = {"decoder": TaskType.CAUSAL_LM, "encoder-decoder": TaskType.SEQ_2_SEQ_LM}


def outcomes(kind: Type, model: PreTrainedModel) -> dict[str, str]:
    """Empty where a method attaches, answers, has an effect and a gradient; else the reason."""
    task = TASKS.get(kind.kind, TaskType.FEATURE_EXTRACTION)
    return {
        "lora": _tried(kind, model, LoraConfig(r=2, task_type=task)),
        "prefix": _tried(kind, model, PrefixTuningConfig(num_virtual_tokens=3, task_type=task)),
    }


def _tried(kind: Type, model: PreTrainedModel, config: Any) -> str:
    try:
        return _checked(kind, copy.deepcopy(model), config)
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


def _checked(kind: Type, model: PreTrainedModel, config: Any) -> str:
    inputs = inputs_of(model, kind)
    before = answer(model, inputs)
    wrapped: Any = get_peft_model(model, config).eval()
    trained = [p for p in wrapped.parameters() if p.requires_grad]
    with torch.no_grad():
        for p in trained:
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(2)) * 0.2)
    after = answer(wrapped, inputs, grad=True)
    if torch.allclose(after, before, atol=1e-6):
        return "no effect"
    (after * torch.randn(after.shape, generator=torch.Generator().manual_seed(3))).sum().backward()
    dead = sum(p.grad is None or not bool(p.grad.abs().max() > 0) for p in trained)
    return f"no gradient in {dead} of {len(trained)} parameters" if dead else ""
