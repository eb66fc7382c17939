"""Compiled models of the hand-written programs, and what the tests ask them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from peftc.runtime.namespace import module_of
from tests.emit.bases import bert, gpt2, ids, llama
from tests.emit.programs import Written

PROGRAMS = [bert, gpt2, llama]
ALL = pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.__name__)


def compiled(written: Written) -> Any:
    module = module_of(f"modeling_{written.program.plan.spec.name.replace('-', '_')}", written.text)
    return getattr(module, type(written.program.plan.trace.model).__name__)


def state(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        t.dtype == other[n].dtype and torch.equal(t, other[n]) for n, t in one.items()
    )


def trains(model: Any) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def perturb(model: Any) -> None:
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)).to(p.dtype) * 0.1)


def answer(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(ids()).logits
    return found


def folder(source: Path, target: Path, weights: dict[str, torch.Tensor]) -> Path:
    """A saved base with other weights."""
    target.mkdir()
    (target / "config.json").write_text((source / "config.json").read_text())
    save_file(weights, target / "model.safetensors", {"format": "pt"})
    return target
