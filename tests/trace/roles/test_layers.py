"""Layers whose parts stand apart: attentions in one list, feed-forwards in another, the residual sums around both."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from peftc.graph.sites import Sublayer
from peftc.trace import trace_model
from tests.trace.nets import WIDTH, Attending, Block, Net, attached, sites


class Feeding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 12), nn.Linear(12, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.down(torch.relu(self.up(x)))
        return result


class Apart(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, WIDTH)
        self.attentions = nn.ModuleList(Attending() for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.feeds = nn.ModuleList(Feeding() for _ in range(2))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x: torch.Tensor = self.embedding(ids)
        for attention, norm, feed in zip(self.attentions, self.norms, self.feeds, strict=True):
            x = norm(x + attention(x))
            x = x + feed(x)
        return x


def made() -> Apart:
    torch.manual_seed(0)
    return Apart().eval()


def test_a_feed_forward_of_its_own_belongs_to_the_layer_beside_it() -> None:
    trace = trace_model(made())
    assert sites(trace) == [("q", "k", "v", "o", "attention", "ffn_up", "ffn_down", "ffn")] * 2
    assert [layer.paths for layer in trace.layers] == [(f"attentions.{i}", f"feeds.{i}") for i in range(2)]
    found = trace.layers[1].find("ffn")
    assert found is not None and isinstance(found[2], Sublayer)
    assert (found[0], found[2].input, found[2].residual) == ("feeds.1", "x", None)
    assert not any(path.startswith(("feeds", "attentions")) for path, _ in trace.others)


@pytest.mark.parametrize("variant", ["pfeiffer", "houlsby", "parallel"])
def test_adapters_behind_and_beside_it(variant: str) -> None:
    adapter = {"method": "adapter", "bottleneck": 2, "variant": variant, "at": ["ffn"]}
    changed: Any = attached(made(), adapter, {"method": "bitfit", "layers": "1"})
    added = {name.partition(".ffn_adapter")[0] for name, _ in changed.named_parameters() if "adapter" in name}
    assert added == {"feeds.0", "feeds.1"}
    assert changed.feeds[1].down.bias.requires_grad and not changed.feeds[0].down.bias.requires_grad


class Mixed(nn.Module):
    """Two streams at each position, weighed by one another: a softmax that no query and no key meet in."""

    def __init__(self) -> None:
        super().__init__()
        self.weights, self.after = nn.Linear(WIDTH, 4), nn.Dropout(0.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = torch.softmax(self.weights(x).unflatten(-1, (2, 2)), dim=-1)
        result: torch.Tensor = self.after((weights @ x.unflatten(-1, (2, -1))).flatten(-2))
        return result


class Streams(nn.Module):
    """A feed-forward behind that."""

    def __init__(self) -> None:
        super().__init__()
        self.mixed, self.feed = Mixed(), Feeding()

    def forward(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        x = self.mixed(x)
        result: torch.Tensor = x + self.feed(x)
        return result


def test_what_weighs_streams_of_one_position_does_not_attend() -> None:
    torch.manual_seed(0)
    model = Net([Streams(), Block(), Streams()]).eval()
    trace = trace_model(model)
    assert [layer.attends for layer in trace.layers] == [False, True, False]
    attached(model, {"method": "lora", "at": ["q", "v"], "rank": 2}, {"method": "adapter", "bottleneck": 2})
