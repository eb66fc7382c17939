"""What is not traced, in the words of the model's own source."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from peftc.trace.record.calls import Recorded
from peftc.trace.tracer.patches import installed
from peftc.trace.tracer.units import UnitTracer
from peftc.trace.tracer.values import TraceFailure


class Doing(nn.Module):
    def __init__(self, what: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.what = nn.Linear(4, 4), what

    def forward(self, x: Tensor) -> Tensor:
        return self.what(self.first(x))


def longer(x: Tensor) -> Tensor:
    length = x.shape[1]
    return x if length > 5 else -x


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (lambda x: {4: x}[x.shape[1]], r"KeyError: x.shape\[1\] \(line \d+, in <lambda>\)"),
        (lambda x: x.view(-1, 3), r"RuntimeError: .* invalid for input of size 40 \(line \d+, in <lambda>\)"),
        (longer, r"a branch on length > 5 \(line \d+, in longer\) that depends on the input's shape"),
        (lambda x: x * int(x.shape[1]), r"x.shape\[1\] \(line \d+, in <lambda>\) is used as a constant"),
    ],
)
def test_a_failure_names_an_expression_and_its_line(what: Callable[[Tensor], Tensor], said: str) -> None:
    call = tuple(Recorded({"x": torch.empty(2, length, 4, device="meta")}, {}) for length in (5, 7))
    with pytest.raises(TraceFailure, match=said), installed() as session:
        UnitTracer(Doing(what).to("meta"), frozenset(), (call,), session).sketch()
