"""with_prefix: the joined keys and values, and what every form of a mask becomes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from peftc.modules import with_prefix

LENGTH, HEADS, WIDTH = 3, 2, 4


def states(queries: int, keys: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.randn(2, 2 * HEADS, queries, WIDTH, dtype=dtype),
        torch.randn(2, HEADS, keys, WIDTH, dtype=dtype),
        torch.randn(2, HEADS, keys, WIDTH, dtype=dtype),
    )


def tables() -> tuple[Tensor, Tensor]:
    return torch.randn(LENGTH, HEADS * WIDTH), torch.randn(LENGTH, HEADS * WIDTH)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_tables_come_before_the_keys_in_their_dtype(dtype: torch.dtype) -> None:
    query, key, value = states(4, 5, dtype)
    prefix = tables()
    new_key, new_value, mask = with_prefix(query, key, value, None, prefix)
    assert mask is None and new_key.dtype == dtype
    assert torch.equal(new_key[:, :, LENGTH:], key) and torch.equal(new_value[:, :, LENGTH:], value)
    assert torch.equal(new_key[1, 1, 2], prefix[0][2, WIDTH:].to(dtype))


@pytest.mark.parametrize("gate", [torch.tensor(0.25), torch.full((2, 1, 1), 0.25), torch.full((2, 1, 1, 1), 0.25)])
def test_a_gate_scales_both_tables(gate: Tensor) -> None:
    query, key, value = states(4, 4)
    prefix = tables()
    expected = with_prefix(query, key, value, None, (0.25 * prefix[0], 0.25 * prefix[1]))
    found = with_prefix(query, key, value, None, prefix, gate)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


@pytest.mark.parametrize(
    "mask",
    [
        torch.tensor([[[[True, False, True, True]]]]),
        torch.tensor([[1, 1, 0, 1], [1, 1, 1, 1]]),
        torch.tensor([[[[0.0, -1e9, 0.5, 0.0]]]]),
        torch.zeros(1, 1, 2, 4, dtype=torch.bfloat16),
    ],
    ids=["bool", "ones", "added", "bfloat16"],
)
def test_a_tensor_is_padded_on_the_left(mask: Tensor) -> None:
    found = with_prefix(*states(2, 4), mask, tables())[2]
    assert found is not None and found.dtype == mask.dtype
    assert torch.equal(found[..., LENGTH:], mask)
    assert (found[..., :LENGTH] == (0 if mask.is_floating_point() else 1)).all()


@given(st.integers(1, 5), st.integers(0, 4))
@settings(max_examples=12, deadline=None)
def test_none_under_causal_attention_hides_later_keys_alone(queries: int, empty: int) -> None:
    """A static cache has room behind the last query; a single query is given no room that it may not read."""
    beyond = empty if queries > 1 else 0
    query, key, value = states(queries, queries + beyond)
    new_key, new_value, mask = with_prefix(query, key, value, None, tables(), causal=True)
    found = sdpa(query, new_key, new_value, mask, enable_gqa=True)
    seen = torch.ones(queries, queries + beyond, dtype=torch.bool).tril()
    explicit = torch.cat([torch.ones(queries, LENGTH, dtype=torch.bool), seen], dim=1)
    torch.testing.assert_close(found, sdpa(query, new_key, new_value, explicit, enable_gqa=True))
    assert (mask is None) == (queries == 1)


def test_another_kind_of_mask_is_refused() -> None:
    with pytest.raises(TypeError, match=r"tensor or None, not dict"):
        with_prefix(*states(2, 4), {}, tables())  # type: ignore[arg-type]
