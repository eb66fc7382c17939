"""The sites of blocks that are written in unusual ways."""

from __future__ import annotations

import pytest
from torch import Tensor, nn
from torch.nn import functional

from peftc.graph.sites import Projection, Sublayer
from peftc.methods.adapter import Adapter
from peftc.methods.gate import Gate
from peftc.methods.lora import LoRA
from tests.trace.seen import sites

WIDTH = 8


class Flattened(nn.Module):
    """A feed-forward over batch and length in one axis, its norm behind the sum and the axis unfolded again."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 12), nn.Linear(12, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape
        x = x.reshape(-1, x.size(-1))
        x = (x + self.down(functional.relu(self.up(x)))).view(shape)
        normed: Tensor = self.norm(x)
        return normed


def test_a_stream_with_batch_and_length_in_one_axis() -> None:
    found = sites(Flattened(), WIDTH)
    ffn, up = found["ffn"], found["ffn_up"]
    assert isinstance(ffn, Sublayer) and isinstance(up, Projection)
    assert (ffn.output, ffn.norm, ffn.flat, up.flat) == ("down", "norm", True, True)


@pytest.mark.parametrize("kind", ["sequence", "masked", "central"])
def test_no_gate_for_an_example_where_examples_are_one_axis(kind: str) -> None:
    found = sites(Flattened(), WIDTH)
    for method, name in ((Adapter(), "ffn"), (LoRA(), "ffn_up")):
        assert "cannot tell the examples apart" in str(method.gate_refusal(Gate.model_validate(kind), found[name]))


def test_a_token_gate_there_stands_alone() -> None:
    ffn = sites(Flattened(), WIDTH)["ffn"]
    assert Adapter().gate_refusal(Gate(kind="token"), ffn) is None
    assert Adapter().gate_refusal(Gate(kind="token", scope="layer"), ffn)
    assert Adapter().gate_refusal(Gate(kind="constant", scope="layer"), ffn) is None
