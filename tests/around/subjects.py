"""One model of each kind with methods attached: what the table around a model is asked of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

from peftc.emit.artifact import Artifact
from peftc.runtime import attach
from peftc.trace import trace_model
from tests.laws import Entry, additions, emitted, move, spec
from tests.zoo import Tiny, fresh, inputs, named

LENGTH = 3  # of the prefix


@dataclass(frozen=True)
class Subject:
    """A tiny model, and LoRA, an adapter and a prefix for it under gates that its kind may have."""

    kind: str
    tiny: Tiny

    def __str__(self) -> str:
        return f"{self.tiny.name}, {self.kind}"

    @property
    def generates(self) -> bool:
        return self.kind != "encoder"

    @property
    def entries(self) -> list[Entry]:
        state, number = ("token", "constant") if self.generates else ("sequence", "sequence")
        trunk = {"reparametrize": {"hidden": 6}} if self.kind in ("encoder", "decoder") else {}
        after = {"at": "attention_output"} if self.kind == "experts" else {}
        return [
            {"method": "lora", "rank": 4, "gate": state},
            {"method": "adapter", "bottleneck": 4, "gate": state, **after},
            {"method": "prefix", "length": LENGTH, "gate": number, **trunk},
        ]

    def base(self, attention: str = "sdpa") -> Any:
        return fresh(self.tiny, attention)

    def artifact(self) -> Artifact:
        return _artifact(self)

    def neutral(self, attention: str = "sdpa") -> Any:
        """The base with additions that change nothing."""
        return without_effect(attach(self.base(attention), self.artifact()))

    def moved(self, attention: str = "sdpa") -> Any:
        """The base with additions that have been trained, as it were."""
        model = attach(self.base(attention), self.artifact())
        move(additions(model))
        return model

    def given(self, padded: bool = False, length: int = 9) -> dict[str, Any]:
        """What `forward` takes: a decoder pads left; an encoder-decoder decodes the first four tokens."""
        found = inputs(self.base(), padded, causal=self.tiny.causal, length=length)
        return {**found, "decoder_input_ids": found["input_ids"][:, :4]} if self.kind == "encoder-decoder" else found

    def prompt(self, padded: bool = False, length: int = 9) -> dict[str, Any]:
        """What `generate` takes."""
        return {key: value for key, value in self.given(padded, length).items() if key != "decoder_input_ids"}


SUBJECTS = (
    Subject("encoder", named("bert")),
    Subject("decoder", named("llama")),
    Subject("encoder-decoder", named("bart")),
    Subject("experts", named("mixtral")),
)
RARE = (Subject("encoder-decoder", named("t5")),)


def subjects(*kinds: str, slow: Iterable[str] = ()) -> pytest.MarkDecorator:
    """Each subject of these kinds, or of all; those of a kind in `slow`, and the rare ones, with `-m slow` only."""
    late = (*slow, *(str(one) for one in RARE))
    found = [one for one in (*SUBJECTS, *RARE) if one.kind in (kinds or KINDS)]
    marks = {one: [pytest.mark.slow] if one.kind in late or str(one) in late else [] for one in found}
    return pytest.mark.parametrize("subject", [pytest.param(one, id=str(one), marks=marks[one]) for one in found])


KINDS = tuple(one.kind for one in SUBJECTS)
GENERATING = KINDS[1:]


@cache
def _artifact(subject: Subject) -> Artifact:
    return emitted(spec(subject.entries, subject.tiny), trace_model(subject.base()))[1]


def without_effect(model: Any) -> Any:
    """The model with prefixes of no keys; the rest has no effect as it starts."""
    for path in model.added:
        module = model.get_submodule(path)
        for name in {"Prefix": ("key", "value"), "PrefixTrunk": ("E",)}.get(type(module).__name__, ()):
            setattr(module, name, nn.Parameter(module.get_parameter(name)[:0].detach()))
    return model


def alike(one: Any, other: Any, to: float = 1e-5) -> None:
    """Equal tensors, or equal nests of them, up to rounding."""
    torch.testing.assert_close(one, other, atol=to, rtol=to)


def output(model: Any, given: dict[str, Any], **options: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(**given, **options).logits
    return found


def gradients(model: Any, given: dict[str, Any]) -> dict[str, torch.Tensor]:
    """What each parameter gets from one step in training, dropout seeded."""
    model.zero_grad()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model.train()(**given).logits.float().square().sum().backward()
    model.eval()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
