"""A bias that is a parameter under another name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import peftc
from peftc.errors import PeftcError
from tests.laws import spec
from tests.trace.nets import WIDTH, Block, made


class Bare(Block):
    """Its feed-forward's matrices and biases are parameters of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.w1, self.b1 = nn.Parameter(torch.ones(12, WIDTH)), nn.Parameter(torch.zeros(12))
        self.w2, self.b2 = nn.Parameter(torch.ones(WIDTH, 12)), nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        x = x + self.attention(x)
        up = functional.linear(x, self.w1, self.b1)
        return x + functional.linear(up.relu(), self.w2, bias=self.b2)


def test_what_is_added_behind_a_matrix_is_a_bias() -> None:
    model = peftc.attach(made(Bare), spec([{"method": "bitfit", "layers": "0"}]))
    trained = {name.removeprefix("blocks.0.") for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {f"attention.{name}.bias" for name in ("query", "key", "value", "out")} | {"b1", "b2"}
    with pytest.raises(PeftcError, match="bitfit knows no bias of ffn_up, whose matrix is a parameter of no module"):
        peftc.attach(made(Bare), spec([{"method": "bitfit", "at": "ffn_up"}]))
