"""A sum that a base makes in place is a new one in emitted code: behind it kernels may round otherwise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from peftc.errors import Defect
from peftc.plan import resolve
from peftc.rewrite import rewrite
from peftc.rewrite.program import Program
from peftc.runtime.proof import prove
from peftc.trace import trace_model
from tests.laws import spec
from tests.trace.nets import Block, Net


class Settling(Block):
    """A sum that is made in place, in a layout that a sum apart would not have."""

    def prepared(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        turned = x.permute(2, 0, 1).contiguous().permute(1, 2, 0) * 2
        turned += x
        return turned


def test_what_a_base_changes_in_place_may_be_rounded_otherwise() -> None:
    lines = prove(rewritten(Settling)).lines
    but = "bit for bit but for rounding behind what it changes in place"
    assert f"Settling: without additions equal to Settling, {but}, gradients too" in lines
    assert f"Settling: with additions equal to Settling at initialisation, {but}" in lines
    assert not any(but in line for line in prove(rewritten(Block)).lines)


def test_more_than_rounding_is_a_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    program = rewritten(Settling)
    monkeypatch.setattr(Settling, "prepared", lambda self, x, **kwargs: Block.prepared(self, x) * 3.0001)
    with pytest.raises(Defect, match="Settling differs from Settling by"):
        prove(program)


def rewritten(kind: type[nn.Module]) -> Program:
    trace = trace_model(Net([kind(), kind()]))
    return rewrite(resolve(spec([{"method": "adapter"}]), trace), trace)
