"""A base as a model on the meta device: its class and its sizes, without its weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from peftc.errors import PeftcError
from peftc.spec.schema import TASKS, Base
from peftc.trace.record.source import said

LARGEST = {"num_hidden_layers": 1000, "hidden_size": 2**17, "intermediate_size": 2**20}
FEW = {"num_hidden_layers": 1, "vocab_size": 100}
UNBUILT = (
    ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, StrictDataclassError, TypeError,
    ValueError,
)  # fmt: skip
UNREAD = (AttributeError, OSError, KeyError, StrictDataclassError, TypeError, ValueError)


def build(base: Base) -> PreTrainedModel:
    """The spec's base on the meta device, in eval mode, ties resolved."""
    config = read_config(base)
    for name, most in LARGEST.items():
        if isinstance(value := getattr(config, name, 0), int) and value > most:
            raise PeftcError(f"the base has a {name} of {value}: more than {most} is not built")
    return from_config(config, base.task)


def read_config(base: Base) -> PreTrainedConfig:
    """The config that a spec writes out, or that of a folder or hub id."""
    try:
        if base.model is not None:
            config: PreTrainedConfig = AutoConfig.from_pretrained(base.model, revision=base.revision)
            return config
        written = dict(base.config or {})
        return AutoConfig.for_model(str(written.pop("model_type")), **written)
    except UNREAD as error:
        raise PeftcError(f"the base's config cannot be read: {_said(error)}") from error


def auto_class(task: str | None) -> Any:
    """The Auto class of a task: `causal-lm` is AutoModelForCausalLM; AutoModel without one."""
    if task is None:
        return transformers.AutoModel
    return getattr(transformers, f"AutoModelFor{TASKS[task]}")


def skeleton(model: nn.Module) -> nn.Module:
    """A copy of a loaded model whose tensors are on the meta device; ties are kept, accelerate's hooks are not."""
    memo: dict[int, Any] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")  # a quantised one is like no plain one
        is_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
    bare = copy.deepcopy(model, memo).eval()
    for module in bare.modules():
        if "_old_forward" in vars(module):
            del module.forward, module._old_forward, module._hf_hook
    return bare


def from_config(config: PreTrainedConfig, task: str | None) -> PreTrainedModel:
    """The model that the task's Auto class makes of a config, on the meta device, ties resolved."""
    config.architectures = config.architectures or []  # an Auto class of several models goes through them
    return _on_meta(lambda: auto_class(task).from_config(config))


def smaller(model: PreTrainedModel, sizes: Mapping[str, int]) -> PreTrainedModel:
    """A model of the same class on the meta device, some integers of its config replaced."""
    config = {**model.config.to_dict(), **sizes}
    return _on_meta(lambda: type(model)(type(model.config).from_dict(config)))


def shallow(model: Any) -> PreTrainedModel:
    """A model of the same class with first values on the CPU, of one layer and few words where its config allows."""
    written = model.config.to_dict()
    fewer = _fewer(written, model.config.attribute_map)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            made: PreTrainedModel = type(model)(type(model.config).from_dict(fewer))
        except UNBUILT:  # it lists its layers elsewhere, or words that stand for something
            made = type(model)(model.config)
    made.eval()
    return made


def _fewer(written: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """A config with smaller numbers, also in the configs that it holds."""
    most = {names.get(name, name): number for name, number in FEW.items()}
    lowered = {key: min(most[key], value) for key, value in written.items() if key in most and isinstance(value, int)}
    return {**written, **{k: _fewer(v, {}) for k, v in written.items() if isinstance(v, dict)}, **lowered}


def _on_meta(build: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    try:
        with torch.device("meta"):
            model = build()
            nn.Module.to(model, "meta")  # some make a tensor in ways that look at no device
    except UNBUILT as error:
        raise PeftcError(f"the base cannot be built: {_said(error)}") from error
    model.tie_weights()
    model.eval()
    return model


def _said(error: Exception) -> str:
    """What transformers says, on one line and without its lists of hundreds of names."""
    text = said(error)
    text = f"{type(error).__name__} {text}" if isinstance(error, LookupError | AttributeError) else text
    return text if len(text) <= 300 else f"{text[:300]}…"
