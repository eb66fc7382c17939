"""Broken lines say what the one line said."""

from __future__ import annotations

import ast

import pytest

from peftc.emit.layout import wrapped


@pytest.mark.parametrize(
    "text",
    [
        "x = (self.first(hidden_states) + self.second(hidden_states)).to(hidden_states.dtype)",
        "x = (self.first(hidden_states, residual),)",
        "x = states[self.first(hidden_states) + self.second(hidden_states)]",
        "x = states[self.first(hidden_states),]",
        "x = self.first(self.second(hidden_states) + self.third(hidden_states))",
        "x = [self.first(self.second(hidden_states), residual)]",
        "x, y = self.first(hidden_states, *states, mask=mask, **kwargs)",
    ],
)
@pytest.mark.parametrize("width", [20, 30, 45, 60, 120])
def test_the_tree_stays(text: str, width: int) -> None:
    assert ast.dump(ast.parse("\n".join(wrapped(text, width)))) == ast.dump(ast.parse(text))


def test_a_long_chain_of_calls_stands_in_brackets() -> None:
    assert wrapped("states = states.view(batch, length, heads).transpose(1, 2).contiguous()", 68) == [
        "states = (",
        "    states.view(batch, length, heads).transpose(1, 2).contiguous()",
        ")",
    ]
    assert wrapped("states = (one + other).view(batch, length, heads).transpose(1, 2).contiguous()", 40) == [
        "states = (",
        "    (one + other)",
        "    .view(batch, length, heads)",
        "    .transpose(1, 2)",
        "    .contiguous()",
        ")",
    ]
