"""Accelerate's hooks, before attaching and after; loading with a device map."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import (  # type: ignore[import-untyped]
    cpu_offload,
    disk_offload,
    dispatch_model,
    infer_auto_device_map,
)
from accelerate.hooks import remove_hook_from_submodules  # type: ignore[import-untyped]

import peftc
from peftc.errors import PeftcError
from peftc.runtime import attach
from peftc.trace import trace_model
from tests.around.subjects import Subject, alike, gradients, output, subjects
from tests.laws import additions, emitted, move, same, spec, trains

pytestmark = pytest.mark.filterwarnings("ignore:The following device_map keys")  # a buffer of the model itself is a key


def split(model: Any, share: float = 0.6) -> dict[str, str]:
    """A device map: this share of the model on the CPU, the rest on disk, no block in two."""
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    room = {"cpu": int(share * size), "disk": 1 << 30}
    found: dict[str, str] = infer_auto_device_map(model, room, no_split_module_classes=list(model._no_split_modules))
    return found


def offloaded(model: Any, way: str, folder: Path) -> None:
    if way == "cpu":
        cpu_offload(model, torch.device("cpu"))
    elif way == "disk":
        disk_offload(model, folder, torch.device("cpu"))
    else:
        dispatch_model(model, split(model), main_device="cpu", offload_dir=folder)


@subjects()
@pytest.mark.parametrize("way", ["cpu", "disk", "split"])
def test_offloaded_after_attaching(subject: Subject, way: str, tmp_path: Path) -> None:
    model, given = subject.moved(), subject.given(padded=True)
    expected, base = output(model, given), output(subject.base(), given)
    offloaded(model, way, tmp_path)
    away = {name for name, p in model.named_parameters() if p.is_meta}
    assert away & model.added_names()
    assert same(output(model, given), expected)
    with model.disable_adapter():
        assert same(output(model, given), base)
    with pytest.raises(ValueError, match="remove_hook_from_submodules"):
        model.save_adapter(tmp_path / "adapter")
    remove_hook_from_submodules(model)
    assert trains(model) == model.added_names() and same(output(model, given), expected)
    model.save_adapter(tmp_path / "adapter")


@subjects()
def test_attached_under_hooks(subject: Subject) -> None:
    """A base that was dispatched with its weights in place: the hooks run the new forwards."""
    expected, given = subject.moved(), subject.given(padded=True)
    base = dispatch_model(subject.base(), {"": "cpu"}, main_device="cpu", force_hooks=True)
    hooked = [module for module in base.modules() if "_old_forward" in vars(module)]
    assert hooked
    plain = output(base, given)
    model = attach(base, emitted(spec(subject.entries, subject.tiny), trace_model(base))[1])
    move(additions(model))
    assert same(output(model, given), output(expected, given))
    alike(gradients(model, given), gradients(expected, given))
    with model.disable_adapter():
        assert same(output(model, given), plain)
    remove_hook_from_submodules(model)
    assert same(output(model, given), output(expected, given))


@subjects()
def test_attaching_to_an_offloaded_base_is_refused(subject: Subject) -> None:
    base = subject.base()
    cpu_offload(base, torch.device("cpu"))
    with pytest.raises(PeftcError, match="attach first, then dispatch"):
        attach(base, subject.artifact())


@subjects()
def test_loaded_with_a_device_map(subject: Subject, tmp_path: Path) -> None:
    folder, base, given = subject.artifact().write(tmp_path), tmp_path / "base", subject.given(padded=True)
    subject.base().save_pretrained(base)
    model: Any = peftc.load(folder, base=base)
    placed: Any = peftc.load(folder, base=base, device_map={"": "cpu"})
    assert trains(placed) == trains(model)
    alike(output(placed, given), output(model, given))
    move(additions(model))
    model.save_pretrained(tmp_path / "whole")
    away = type(model).from_pretrained(tmp_path / "whole", device_map=split(model), offload_folder=tmp_path / "away")
    assert any(p.is_meta for p in away.parameters())
    alike(output(away, given), output(model, given))  # a kernel may round otherwise what lies elsewhere in memory


@subjects("encoder", "decoder")
def test_a_device_map_cannot_put_new_tensors_on_disk(subject: Subject, tmp_path: Path) -> None:
    folder, base = subject.artifact().write(tmp_path), tmp_path / "base"
    subject.base().save_pretrained(base)
    with pytest.raises(PeftcError, match="no device_map can put new tensors on disk"):
        peftc.load(folder, base=base, device_map=split(subject.moved()))
