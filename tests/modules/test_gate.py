"""Gates: their values, what they may see, and the masks that say which tokens are real."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from peftc import modules
from tests.modules.test_additions import initialised

X = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(1))
REAL = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
BOOL = REAL.bool()[:, None, None].expand(2, 1, 4, 4)
MASKS = {
    "flat": REAL,
    "flat bool": REAL.bool(),
    "flat float": REAL.float(),
    "bool": BOOL,
    "one query": BOOL[:, :, :1],
    "added": torch.zeros(2, 1, 4, 4).masked_fill(~BOOL, torch.finfo().min),
    "added half": torch.zeros(2, 3, 4, 4, dtype=torch.float16).masked_fill(~BOOL, torch.finfo(torch.float16).min),
    "added -10000": torch.zeros(2, 1, 1, 4).masked_fill(~BOOL[:, :, :1], -10000.0),
    "infinite": torch.zeros(2, 1, 4, 4).masked_fill(~BOOL, float("-inf")),
}


def pointwise(gate: modules.SequenceGate | modules.MaskedGate | modules.TokenGate) -> torch.Tensor:
    return torch.sigmoid(X @ gate.weight[0] + gate.bias)


def test_sequence() -> None:
    gate = initialised(modules.SequenceGate(6), 1.0)
    torch.testing.assert_close(gate(X), pointwise(gate).mean(1)[:, None, None])
    torch.testing.assert_close(gate(X[0]), gate(X)[0])


@pytest.mark.parametrize("name", MASKS)
def test_masked_ignores_padding(name: str) -> None:
    gate = initialised(modules.MaskedGate(6), 1.0)
    expected = (pointwise(gate) * REAL).sum(1) / REAL.sum(1)
    torch.testing.assert_close(gate(X, MASKS[name]), expected[:, None, None])
    noisy = X.masked_fill(REAL[..., None] == 0, 1e3)
    assert torch.equal(gate(noisy, MASKS[name]), gate(X, MASKS[name]))


def test_masked_without_a_mask_is_sequence() -> None:
    gate = initialised(modules.MaskedGate(6), 1.0)
    torch.testing.assert_close(gate(X, None), pointwise(gate).mean(1)[:, None, None])


def test_masked_with_a_mask_that_all_examples_share() -> None:
    gate = initialised(modules.MaskedGate(6), 1.0)
    torch.testing.assert_close(gate(X, BOOL[1:]), pointwise(gate)[:, :2].mean(1)[:, None, None])


def test_masked_survives_an_example_of_padding_alone() -> None:
    gate = initialised(modules.MaskedGate(6), 1.0)
    assert gate(X, torch.zeros_like(REAL)).isfinite().all()


def test_token_sees_no_other_position() -> None:
    gate = initialised(modules.TokenGate(6), 1.0)
    torch.testing.assert_close(gate(X), pointwise(gate)[..., None])
    torch.testing.assert_close(gate(X[:, 2:3]), gate(X)[:, 2:3])


def test_constant_starts_at_a_half() -> None:
    gate = initialised(modules.ConstantGate())
    assert gate().shape == (1,) and gate() == 0.5


def test_central_shares_one_softmax() -> None:
    gate = initialised(modules.CentralGate(6, 3), 1.0)
    weights = torch.softmax(torch.relu(X @ gate.weight.T + gate.bias).mean(1), -1)
    assert gate(X).shape == (3, 2, 1, 1)
    torch.testing.assert_close(gate(X)[1], weights[:, 1, None, None])
    torch.testing.assert_close(gate(X).sum(0), torch.ones(2, 1, 1))


def test_a_masked_gate_says_what_mask_it_needs() -> None:
    mask: Any = object()
    with pytest.raises(TypeError, match=r"needs a mask that is a tensor, not object: use sdpa or eager"):
        initialised(modules.MaskedGate(6), 1.0)(torch.zeros(2, 3, 6), mask)
