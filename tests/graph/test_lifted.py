"""Numbers that remember what they were made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from peftc.graph.branches import LiftedFloat, LiftedInt


def lifted(value: Any, source: str) -> Any:
    number: Any = LiftedInt(value) if type(value) is int else LiftedFloat(value)
    number.source = source
    return number


@dataclass
class Unit:
    """Attributes as a trace has them."""

    heads: Any
    size: Any
    scale: Any


MADE: Mapping[str, Callable[[Unit], Any]] = {
    "3 * self.size": lambda self: 3 * self.size,
    "(self.heads + 2) * self.size": lambda self: (self.heads + 2) * self.size,
    "self.heads - (2 - self.size)": lambda self: self.heads - (2 - self.size),
    "self.size**-0.5": lambda self: self.size**-0.5,
    "-self.scale": lambda self: -self.scale,
    "self.heads * self.size // 2": lambda self: self.heads * self.size // 2,
    "self.scale / self.heads": lambda self: self.scale / self.heads,
    "self.size": lambda self: self.size * 1,
    "(-self.scale)**2": lambda self: (-self.scale) ** 2,
}


@pytest.mark.parametrize("source", MADE)
def test_what_is_made_of_attributes_says_how(source: str) -> None:
    number = MADE[source](Unit(lifted(4, "self.heads"), lifted(8, "self.size"), lifted(0.5, "self.scale")))
    plain = MADE[source](Unit(4, 8, 0.5))
    assert (number.source, float(number), isinstance(number, float)) == (source, plain, isinstance(plain, float))


def test_what_would_be_long_is_the_number() -> None:
    heads, size = lifted(4, "self.config.num_attention_heads"), lifted(8, "self.attention_head_size")
    assert type(heads * size) is int and heads * size == 32


def test_no_comparison_and_no_text_is_a_number() -> None:
    heads = lifted(4, "self.heads")
    assert type(heads == 4) is bool and type(max(heads, 3) > 1) is bool
    assert [0] * heads == [0, 0, 0, 0] and "ab" * heads == "abababab"


def test_a_flag_keeps_a_number_or_leaves_nothing_of_it() -> None:
    scale = lifted(0.5, "self.scale")
    assert (scale * True).source == (True * scale).source == "self.scale"
    assert type(scale * False) is float and scale * False == 0.0
    assert type(scale + True) is float and scale + True == 1.5
