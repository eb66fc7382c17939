"""Layer selectors."""

from __future__ import annotations

import pytest

from peftc.spec.layers import Layers, LayersError, ranges, select

MEANS: dict[Layers, tuple[int, ...]] = {
    "all": (0, 1, 2, 3, 4, 5, 6, 7),
    "0-2": (0, 1, 2),
    "0, 3, 6-": (0, 3, 6, 7),
    "last 2": (6, 7),
    "even": (0, 2, 4, 6),
    "odd": (1, 3, 5, 7),
    "odd, 0": (0, 1, 3, 5, 7),
    3: (3,),
    (5, 1): (1, 5),
}


@pytest.mark.parametrize(("layers", "indices"), MEANS.items())
def test_select(layers: Layers, indices: tuple[int, ...]) -> None:
    assert select(layers, 8) == indices


@pytest.mark.parametrize(
    "layers", ["8", "0-8", "8-", "last 9", "last 0", "5-2", "-1", "first", "", "1,,2", "0-999999", (8,), -1]
)
def test_select_refuses(layers: Layers) -> None:
    with pytest.raises(LayersError):
        select(layers, 8)


@pytest.mark.parametrize("text", ["0", "0-2", "0, 2, 4-7", "1, 3"])
def test_ranges_are_what_select_reads(text: str) -> None:
    assert ranges(reversed(select(text, 8))) == text
