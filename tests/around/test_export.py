"""torch.compile, torch.export and ONNX: one graph each, that answers as the model does."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch.export import Dim
from transformers import AutoModel

import peftc
from tests.around.subjects import Subject, alike, gradients, output, subjects

COMPILER = shutil.which(os.environ.get("CXX", "g++"))
NATIVE = "inductor" if COMPILER else "aot_eager"  # inductor writes C++; each test's name says what it ran with
pytestmark = [  # torch's own, out of the depths of its exporters
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def given(subject: Subject, length: int = 9) -> dict[str, Any]:
    """Inputs of one graph: no cache grows in it."""
    found = subject.given(padded=True, length=length)
    return {**found, "use_cache": False} if subject.generates else found


@subjects(slow=("encoder", "encoder-decoder", "experts"))
@pytest.mark.parametrize("backend", [NATIVE])
def test_compiled_to_native_code(subject: Subject, backend: str) -> None:
    same_when_compiled(subject, backend)


@subjects()
def test_compiled_to_one_graph(subject: Subject) -> None:
    same_when_compiled(subject, "aot_eager")


@subjects(slow=("encoder", "decoder", "encoder-decoder"))
def test_gradients_of_one_graph(subject: Subject) -> None:
    torch._dynamo.reset()
    model = torch.compile(subject.moved(), backend="aot_eager", fullgraph=True)
    found = {name.removeprefix("_orig_mod."): g for name, g in gradients(model, given(subject)).items()}
    alike(found, gradients(subject.moved(), given(subject)), 1e-4)


@subjects("encoder", "experts")
def test_loaded_from_its_folder(subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels are the base's: transformers looks in the text of a class's file for which a class may have, once."""
    subject.base().save_pretrained(tmp_path / "base")
    for kernel in ("attn", "experts"):
        said = f"_can_set_{kernel}_implementation_cached_value"
        monkeypatch.delattr(type(subject.base()), said, raising=False)
    loaded: Any = peftc.load(subject.artifact().write(tmp_path), base=tmp_path / "base")
    kind: Any = AutoModel
    base = kind.from_pretrained(tmp_path / "base")
    for kernel in ("_attn_implementation", "_experts_implementation"):
        assert getattr(loaded.config, kernel) == getattr(base.config, kernel)
    if subject.kind == "experts":
        torch._dynamo.reset()
        alike(
            output(torch.compile(loaded, backend="aot_eager", fullgraph=True), given(subject)),
            output(loaded, given(subject)),
        )


def same_when_compiled(subject: Subject, backend: str) -> None:
    torch._dynamo.reset()
    model = subject.moved()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    alike(output(compiled, given(subject)), output(model, given(subject)))


@subjects()
def test_exported(subject: Subject) -> None:
    """A program for any batch and length."""
    model, inputs = subject.moved(), given(subject)
    anything = {key: {0: Dim.AUTO, 1: Dim.AUTO} if isinstance(v, torch.Tensor) else None for key, v in inputs.items()}
    program = torch.export.export(model, (), inputs, dynamic_shapes=anything, strict=False).module()
    for length in (9, 12):
        alike(output(program, given(subject, length)), output(model, given(subject, length)))


@subjects("encoder")
def test_exported_to_onnx(subject: Subject, tmp_path: Path) -> None:
    model, file = subject.moved(), tmp_path / "model.onnx"
    anything = {key: {0: Dim.DYNAMIC, 1: Dim.DYNAMIC} for key in given(subject)}
    written = torch.onnx.export(
        model, (), kwargs=given(subject), dynamo=True, dynamic_shapes=anything, verbose=False, optimize=True
    )
    assert written is not None
    written.save(file)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for length in (9, 12):
        inputs = given(subject, length)
        (found,) = session.run(None, {key: tensor.numpy() for key, tensor in inputs.items()})
        alike(torch.from_numpy(found), output(model, inputs), 1e-4)
