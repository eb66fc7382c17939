"""Bases whose linears torchao keeps in eight bits.  It is no part of the dev extra, for it talks at every import."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import TorchAoConfig

import peftc
from tests.around.subjects import Subject, output, subjects
from tests.around.test_wrapped import in_a_layer, narrow, runs_quantised
from tests.laws import additions, move, same, trains

quantization = pytest.importorskip("torchao.quantization", reason="pip install torchao: the extra `quantised`")


def by_torchao(model: Any) -> None:
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig(), in_a_layer)


@subjects()
def test_a_quantised_base(subject: Subject, tmp_path: Path) -> None:
    runs_quantised(subject, by_torchao, tmp_path)


@subjects()
def test_a_base_quantised_as_it_is_loaded(subject: Subject, tmp_path: Path) -> None:
    folder, base, given = subject.artifact().write(tmp_path), tmp_path / "base", subject.given(padded=True)
    subject.base().save_pretrained(base)
    plain: Any = peftc.load(folder, base=base)
    one, other = (
        type(plain).from_base(base, quantization_config=TorchAoConfig(quantization.Int8WeightOnlyConfig()))
        for _ in range(2)
    )
    assert narrow(one) >= 8 and trains(one) == trains(plain)
    assert all(same(one.get_parameter(name), plain.get_parameter(name)) for name in trains(plain))
    move(additions(one))
    assert not same(output(one, given), output(other, given))
    one.save_adapter(tmp_path / "adapter")
    other.load_adapter(tmp_path / "adapter")
    assert same(output(one, given), output(other, given))
