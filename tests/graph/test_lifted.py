"""Numbers that remember what they were made of."""

from __future__ import annotations

from typing import Any

import pytest

from peftc.graph.branches import LiftedFloat, LiftedInt


def lifted(value: Any, source: str) -> Any:
    number: Any = LiftedInt(value) if type(value) is int else LiftedFloat(value)
    number.source = source
    return number


@pytest.mark.parametrize(
    "source",
    [
        "3 * self.size", "(self.heads + 2) * self.size", "self.heads - (2 - self.size)", "self.size**-0.5",
        "-self.scale",
        "self.heads * self.size // 2", "self.scale / self.heads", "(-self.scale)**2",
    ],
)  # fmt: skip
def test_what_is_made_of_attributes_says_how(source: str) -> None:
    class Unit:
        heads, size, scale = lifted(4, "self.heads"), lifted(8, "self.size"), lifted(0.5, "self.scale")

    class Plain:
        heads, size, scale = 4, 8, 0.5

    number, plain = eval(source, {"self": Unit}), eval(source, {"self": Plain})
    assert (number.source, float(number), isinstance(number, float)) == (source, plain, isinstance(plain, float))


def test_what_would_be_long_is_the_number() -> None:
    heads, size = lifted(4, "self.config.num_attention_heads"), lifted(8, "self.attention_head_size")
    assert type(heads * size) is int and heads * size == 32


def test_no_comparison_and_no_text_is_a_number() -> None:
    heads = lifted(4, "self.heads")
    assert type(heads == 4) is bool and type(max(heads, 3) > 1) is bool
    assert [0] * heads == [0, 0, 0, 0] and "ab" * heads == "abababab"
