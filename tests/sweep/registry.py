"""The model types of transformers' registry, what kind of input each reads, and the class that is built of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import transformers
from transformers.models.auto import modeling_auto

from tests.sweep.variants import VARIANTS

TYPES = Path(__file__).with_name("types.txt")
KINDS = (
    ("text-vision", "image-text-to-text", "IMAGE_TEXT_TO_TEXT"),
    ("speech", "speech-seq2seq", "SPEECH_SEQ_2_SEQ"),
    ("encoder-decoder", "seq2seq-lm", "SEQ_TO_SEQ_CAUSAL_LM"),
    ("encoder", "masked-lm", "MASKED_LM"),
    ("decoder", "causal-lm", "CAUSAL_LM"),
    ("encoder", "sequence-classification", "SEQUENCE_CLASSIFICATION"),
    ("encoder", "text-encoding", "TEXT_ENCODING"),
    ("vision", "image-classification", "IMAGE_CLASSIFICATION"),
    ("speech", "audio-classification", "AUDIO_CLASSIFICATION"),
)
PARTS = {"vision_config": "text-vision", "audio_config": "speech", "audio_encoder_config": "speech"}
TEXT = ("encoder-decoder", "decoder", "encoder")


@dataclass(frozen=True)
class Type:
    """One model type: its kind, the task whose Auto class builds it (None: AutoModel), and that class's name.

    A variant has its config class's defaults but for its settings.
    """

    name: str
    kind: str
    task: str | None
    model: str
    variant: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return f"{self.name} ({self.variant})" if self.variant else self.name

    @property
    def called(self) -> frozenset[str]:
        """What a command may call it, alone or together with others."""
        return frozenset({self.label, self.name, self.kind, *(["variants"] if self.variant else [])})

    @property
    def text(self) -> bool:
        return self.kind in TEXT


def listed() -> tuple[tuple[str, str], ...]:
    """(kind, model type) of every line of the list."""
    lines = (line.split() for line in TYPES.read_text("utf-8").splitlines() if line and not line.startswith("#"))
    return tuple((kind, name) for kind, name in lines)


def registered() -> dict[str, Type]:
    """Every model type that some model class is registered for, by the first kind that fits."""
    found: dict[str, Type] = {}
    for kind, task, suffix in KINDS:
        for name, model in _mapping(f"MODEL_FOR_{suffix}_MAPPING_NAMES").items():
            found.setdefault(name, Type(name, _reads(name) or kind, task, _first(model)))
    for name, model in _mapping("MODEL_MAPPING_NAMES").items():
        found.setdefault(name, Type(name, "other", None, _first(model)))
    return found


def variants() -> dict[str, Type]:
    """Every variant of a type that released checkpoints have, by its label."""
    types = registered()
    found = [
        replace(types[name], variant=variant, settings=settings)
        for name, own in VARIANTS.items()
        for variant, settings in own.items()
    ]
    return {kind.label: kind for kind in found}


def _mapping(name: str) -> dict[str, Any]:
    return dict(getattr(modeling_auto, name))


def _reads(name: str) -> str | None:
    """What a type reads beside text, by the sub-configs that its config class has."""
    parts = transformers.CONFIG_MAPPING[name].sub_configs
    return next((kind for part, kind in PARTS.items() if part in parts), None)


def _first(model: Any) -> str:
    return str(model if isinstance(model, str) else model[0])
