"""Which modules of a model transformers takes outputs from, where it is asked for them: calls, by hooks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.utils.output_capturing import OutputRecorder


def taken(model: nn.Module, what: str) -> list[str]:
    """The paths of the modules whose calls are asked for a model's records of this name."""
    asked = [spec for m in model.modules() if isinstance(m, PreTrainedModel) for spec in _specs(m, what)]
    kinds = tuple(spec for spec in asked if isinstance(spec, type))
    ends = tuple(spec for spec in asked if isinstance(spec, str))
    return [path for path, module in model.named_modules() if isinstance(module, kinds) or path.endswith(ends)]


def _specs(model: PreTrainedModel, what: str) -> Iterator[Any]:
    """What a model says of where a record of it comes from: classes, and the ends of paths."""
    for key, specs in (model._can_record_outputs or {}).items():
        for spec in specs if isinstance(specs, list) else [specs]:
            if key.endswith(what):
                yield (spec.target_class or spec.class_name) if isinstance(spec, OutputRecorder) else spec
