"""What a model does to itself while it runs is seen, and left alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import peftc
from peftc.trace import trace_model
from peftc.trace.record.inputs import SCENARIOS
from peftc.trace.record.model import skeleton
from peftc.trace.record.observed import observe
from tests.trace.nets import WIDTH, Attending, Block, Net, attached, made


class Plain(Attending):
    """What takes the place of another attention."""


class Settling(Net):
    """Puts modules of another class in the place of its attentions, on their weights."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            if type(block.attention) is Attending:
                plain = Plain()
                plain._modules.update(block.attention._modules)
                block.attention = plain
        return super().forward(ids)


def settling() -> Net:
    torch.manual_seed(0)
    return Settling([Block(), Block()]).eval()


def test_a_module_that_its_model_replaces_is_no_unit() -> None:
    trace = trace_model(settling())
    why = "Attending becomes Plain while the model runs"
    assert trace.untraced == {"blocks.0.attention": why, "blocks.1.attention": why}
    attached(settling(), {"method": "adapter", "bottleneck": 2})
    with pytest.raises(peftc.PeftcError, match=why):
        attached(settling(), {"method": "lora", "at": ["q"], "rank": 2})


class Summing(Net):
    """Weighs its states, those behind each block as a hook keeps them."""

    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__(blocks)
        self.weights = nn.Parameter(torch.ones(len(blocks) + 1, 1, 1, 1))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        kept: list[torch.Tensor] = [self.embedding(ids)]
        hooks = [block.register_forward_hook(lambda *call: kept.append(call[-1])) for block in self.blocks]
        super().forward(ids)
        for hook in hooks:
            hook.remove()
        return (torch.stack(kept) * self.weights).sum(0)


def test_hooks_see_every_block() -> None:
    attached(Summing([Block(), Block(), Block()]).eval())


class Windowed(Block):
    """Counts how many windows there are."""

    def prepared(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        count: Any = torch.div(x.shape[1], 16, rounding_mode="trunc")
        return x.view(x.shape[0], count, 16, WIDTH).flatten(1, 2)


class Padded(Net):
    """Pads what it reads to a multiple of a window."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        padded = nn.functional.pad(ids, (0, -ids.shape[1] % 16))
        result: torch.Tensor = super().forward(padded)
        return result[:, : ids.shape[1]]


def test_lengths_that_are_padded_to_one_are_told_apart() -> None:
    torch.manual_seed(0)
    model = Padded([Windowed(), Windowed()]).eval()
    observed = observe(skeleton(model))
    lengths = {
        call.named["x"].shape[1]
        for r in observed.recordings[SCENARIOS[0]]
        for call in r.calls.values()
        if "x" in call.named
    }
    assert lengths == {16, 96}
    attached(model, {"method": "adapter", "bottleneck": 2})


class Bare(nn.Module):
    """An attention on weights that no module holds."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Parameter(torch.ones(WIDTH, 3 * WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in (x @ self.maps).chunk(3, dim=-1))
        return nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def test_a_module_of_a_matrix_alone_is_seen_to_be_called() -> None:
    net = made(Block)
    for block in net.blocks:
        block.attention = Bare()
    assert not trace_model(net).untraced


class Timed(Net):
    def forward(  # type: ignore[override]
        self, ids: torch.Tensor, step: torch.Tensor, kind: torch.Tensor | None = None
    ) -> torch.Tensor:
        return super().forward(ids) + step


def test_what_a_model_must_be_given_and_peftc_does_not_know_is_named() -> None:
    with pytest.raises(peftc.PeftcError, match=r"Timed fails on .*'step'\n.*nothing is given for step, .* defaults"):
        trace_model(Timed([Block()]))


class Mixed(Attending):
    """Adds what the first of its kind has made of its own input."""

    def forward(self, x: torch.Tensor, first: torch.Tensor | None = None, **kwargs: Any) -> Any:
        first = self.value(x) if first is None else first
        return super().forward(x) + first, first


class Handing(Block):
    attends = Mixed

    def forward(self, x: torch.Tensor, first: torch.Tensor | None = None, **kwargs: Any) -> Any:
        attended, first = self.attention(x, first)
        x = x + attended
        return x + self.down(torch.relu(self.up(x))), first


class Relay(Net):
    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x, first = self.embedding(ids), None
        for block in self.blocks:
            x, first = block(x, first)
        result: torch.Tensor = x
        return result


def test_what_the_first_block_alone_is_not_given() -> None:
    torch.manual_seed(0)
    attached(Relay([Handing(), Handing()]).eval())
