"""Narrow weights and autocast: the base as it is by itself, additions in the dtype of the spec."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import peftc
from peftc.runtime import attach
from tests.around.subjects import Subject, gradients, output, subjects
from tests.laws import additions, emitted, move, spec, trace
from tests.zoo import fresh, named

NARROW = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
NEAR = {torch.bfloat16: 0.15, torch.float16: 0.02}  # several roundings of numbers around one


def narrow(subject: Subject, dtype: torch.dtype) -> Any:
    """The base in a narrow dtype, with moved additions."""
    model = attach(subject.base().to(dtype), subject.artifact())
    move(additions(model))
    return model


def near(found: torch.Tensor, expected: torch.Tensor, to: float) -> None:
    """Equal up to `to`, but for one number in twenty: a rounding may turn a router to another expert."""
    close = torch.isclose(found.float(), expected.float(), rtol=to, atol=to)
    assert found.isfinite().all() and close.float().mean() > 0.95


@subjects()
@NARROW
def test_additions_keep_the_dtype_of_the_spec(subject: Subject, dtype: torch.dtype) -> None:
    model = narrow(subject, dtype)
    added = model.added_names()
    assert {p.dtype for name, p in model.named_parameters() if name in added} == {torch.float32}
    assert {p.dtype for name, p in model.named_parameters() if name not in added} == {dtype}
    given = subject.given(padded=True)
    found = output(model, given)
    assert found.dtype == dtype
    near(found, output(subject.moved(), given), NEAR[dtype])
    got = gradients(model, given)
    assert {g.dtype for g in got.values()} == {torch.float32} and got.keys() == added
    assert all(g.isfinite().all() and g.any() for g in got.values())


@subjects()
@NARROW
def test_without_effect_as_the_narrow_base(subject: Subject, dtype: torch.dtype) -> None:
    for padded in (False, True):
        given = subject.given(padded)
        near(output(subject.neutral().to(dtype), given), output(subject.base().to(dtype), given), NEAR[dtype] / 10)


@subjects()
def test_autocast(subject: Subject) -> None:
    given = subject.given(padded=True)
    with torch.autocast("cpu", torch.bfloat16):
        near(output(subject.neutral(), given), output(subject.base(), given), 0.02)
        cast = output(subject.moved(), given)
        got = gradients(subject.moved(), given)
    wide = gradients(subject.moved(), given)
    assert not torch.equal(cast.float(), output(subject.moved(), given))
    near(cast, output(subject.moved(), given), NEAR[torch.bfloat16])
    assert got.keys() == wide.keys() and {g.dtype for g in got.values()} == {torch.float32}
    for name, gradient in got.items():
        cosine = torch.nn.functional.cosine_similarity(gradient.flatten(), wide[name].flatten(), dim=0)
        assert gradient.isfinite().all() and (cosine > 0.8 or wide[name].norm() < 1e-4), name


@subjects()
@NARROW
def test_the_whole_model_narrowed(subject: Subject, dtype: torch.dtype) -> None:
    """`model.half()` narrows the additions too, as it does with any module."""
    model = subject.moved().to(dtype)
    assert {p.dtype for p in model.parameters()} == {dtype} == {model.dtype}
    given = subject.given(padded=True)
    near(output(model, given), output(subject.moved(), given), NEAR[dtype])


@subjects("encoder")
@NARROW
def test_loaded_narrow(subject: Subject, dtype: torch.dtype, tmp_path: Path) -> None:
    folder = subject.artifact().write(tmp_path / "artifact")
    subject.base().save_pretrained(tmp_path / "base")
    model: Any = peftc.load(folder, base=tmp_path / "base", dtype=dtype)
    added = model.added_names()
    assert all(p.dtype == (torch.float32 if name in added else dtype) for name, p in model.named_parameters())
    expected = attach(subject.base().to(dtype), subject.artifact())
    assert torch.equal(output(model, subject.given()), output(expected, subject.given()))


def test_saved_beside_weights_that_stay_wide(tmp_path: Path) -> None:
    """What transformers keeps in float32 it finds by words, here `wo`, which `wo_lora` has in its name."""
    tiny = named("t5")
    _, artifact = emitted(spec([{"method": "lora", "at": "ffn_down"}], tiny, dtype="base"), trace(tiny))
    fresh(tiny).save_pretrained(tmp_path / "base")
    model: Any = peftc.load(artifact.write(tmp_path), base=tmp_path / "base", dtype=torch.float16)
    model.save_pretrained(tmp_path / "whole")
    model.save_adapter(tmp_path / "adapter")
    again = type(model).from_pretrained(tmp_path / "whole", dtype=torch.float16)
    assert {name: p.dtype for name, p in again.named_parameters()} == {n: p.dtype for n, p in model.named_parameters()}
    again.load_adapter(tmp_path / "adapter")
