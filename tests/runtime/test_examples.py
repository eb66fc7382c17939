"""Real numbers for what was recorded without any: what a mask is, and what is none."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn
from transformers import PreTrainedConfig

from peftc.runtime.examples import UNSEEN, Filler, Recordings
from peftc.trace.record.calls import Recorded, Recording
from peftc.trace.record.feeds import Point
from peftc.trace.record.inputs import SCENARIOS


def recorded(point: Point) -> dict[str, Any]:
    """What a unit may be called with: states, a mask among other things, and which positions belong together."""
    batch, length = point.batch, point.length
    states, mask = (torch.empty(*sizes, device="meta") for sizes in ((batch, length, 6), (batch, 1, length, length)))
    return {"states": states, "inputs": (states, mask), "same": torch.empty(mask.shape, dtype=torch.bool),
            "padded": torch.empty(batch, 32, device="meta")}  # fmt: skip


def traced() -> fx.Graph:
    """The trace of a unit that is given one number for each position, of two examples."""
    graph = fx.Graph()
    graph.placeholder("padded").meta["value"] = torch.empty(2, 8, device="meta"), torch.empty(3, 16, device="meta")
    return graph


def filled(*, added: bool) -> list[dict[str, Any]]:
    module = nn.Identity()
    found = {(SCENARIOS[0], p): Recording({module: Recorded(recorded(p), {})}) for p in UNSEEN}
    calls = [dict(call.named) for _, call in Recordings(found, {}).calls(module, traced())]
    assert len(calls) == len(UNSEEN)
    return [Filler(1, torch.float32, added)(call) for call in calls]


def test_numbers_without_features_hide_or_show() -> None:
    for call in filled(added=False):
        states, mask = call["inputs"]
        assert set(mask.unique().tolist()) == {0.0, 1.0}
        assert len(states.unique()) == states.numel()


def test_what_is_padded_to_one_length_at_both_sizes() -> None:
    assert all(set(call["padded"].unique().tolist()) == {0.0, 1.0} for call in filled(added=False))


def test_what_is_bool_stays_so_under_the_attention_that_was_recorded() -> None:
    for added, dtype in ((False, torch.bool), (True, torch.float32)):
        assert all(call["same"].dtype == dtype for call in filled(added=added))


def test_a_mask_shows_and_hides_something_to_each_query() -> None:
    for call in filled(added=False):
        assert call["same"].any(-1).all()
        assert not call["same"].all(-1).any()


class Kept:
    """What a model makes of its own to keep something between two calls."""

    def __init__(self, states: torch.Tensor) -> None:
        self.states, self.layers = states, {"first": states}


def test_what_a_model_keeps_is_copied_once() -> None:
    kept = Kept(torch.empty(2, 3, device="meta"))
    named = Filler(1, torch.float32, added=False)({"one": kept, "other": [kept], "config": PreTrainedConfig()})
    assert named["one"] is named["other"][0] is not kept
    assert named["one"].states.device.type == named["one"].layers["first"].device.type == "cpu"
    assert kept.states.is_meta
