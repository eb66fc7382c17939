"""Real numbers for what was recorded without any: what a mask is, and what is none."""

from __future__ import annotations

import torch

from peftc.runtime.examples import Filler

SHAPE = (2, 1, 5, 7)
GIVEN = {
    "hidden_states": torch.empty(SHAPE, device="meta"),
    "attention_mask": torch.empty(SHAPE, device="meta"),
    "same_segment": torch.empty(SHAPE, device="meta", dtype=torch.bool),
}


def test_a_mask_of_numbers_hides_or_shows() -> None:
    filled = Filler(1, torch.float32, added=False)(GIVEN)
    assert set(filled["attention_mask"].unique().tolist()) == {0.0, 1.0}
    assert len(filled["hidden_states"].unique()) > 2


def test_what_is_bool_stays_so_under_the_attention_that_was_recorded() -> None:
    for added, dtype in ((False, torch.bool), (True, torch.float32)):
        assert Filler(1, torch.float32, added)(GIVEN)["same_segment"].dtype == dtype
