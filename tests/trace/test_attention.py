"""Whose keys an attention reads: its own sequence's, by whatever names they are handed in, or another one's."""

from __future__ import annotations

import torch

from peftc.trace.calls import Recorded
from peftc.trace.layers import alike


def test_parameters_that_are_always_given_one_tensor() -> None:
    one, other, third = (torch.empty(2, 3) for _ in range(3))
    calls = [
        (Recorded({"v": one, "k": one, "q": one, "mask": other, "count": 1}, {}),),
        (Recorded({"v": other, "k": other, "q": other, "mask": third, "count": 1}, {}),),
    ]
    assert alike(calls) == {"k": "v", "q": "v"}
    crossed = (Recorded({"v": one, "k": one, "q": third, "mask": other, "count": 1}, {}),)
    assert alike([*calls, crossed]) == {"k": "v"}
    without = (Recorded({"v": one, "q": one}, {}),)
    assert alike([*calls, without]) == {"q": "v"}
    assert alike([]) == {}
