"""Parts of a fused projection that no node holds alone: they come apart behind a merged axis, a bound, or windows."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import peftc
from peftc.graph.sites import Projection
from peftc.trace import trace_model
from tests.laws import spec
from tests.trace.nets import IDS, WIDTH, Block, made

PARTS = {"q": slice(0, 8), "k": slice(8, 16), "v": slice(16, 24)}


class Merged(nn.Module):
    """Two heads; the batch and the heads are one axis, as in image encoders."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        batch, length, _ = x.shape
        qkv = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.reshape(3, batch * 2, length, 4).unbind(0)
        weights = (q * 0.5 @ k.transpose(-2, -1)).softmax(-1)
        result: torch.Tensor = self.out((weights @ v).view(batch, 2, length, 4).transpose(1, 2).flatten(2))
        return result


class MergedBlock(Block):
    attends = Merged


class Clipped(Merged):
    """What q, k and v are made from is bounded before they come apart."""

    def forward(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        q, k, v = (p.unflatten(-1, (2, 4)).transpose(1, 2) for p in self.qkv(x).clamp(-1, 1).chunk(3, -1))
        result: torch.Tensor = self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return result


class ClippedBlock(MergedBlock):
    attends = Clipped


class Windowed(Merged):
    """Every other position is of another window, and attends to its own alone."""

    def forward(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        batch, length, _ = x.shape
        qkv = self.qkv(torch.cat([x, x.flip(1)], 1)).reshape(batch, length, 2, 3, 2, 4)
        q, k, v = qkv.permute(3, 0, 4, 2, 1, 5).unbind(0)
        weights = (q * 0.5 @ k.transpose(-2, -1)).softmax(-1)
        result: torch.Tensor = self.out((weights @ v).transpose(1, 3).reshape(batch, 2 * length, 8))[:, :length]
        return result


class WindowedBlock(MergedBlock):
    attends = Windowed


class Named(MergedBlock):
    """It has a module of the name that a part could have."""

    def __init__(self) -> None:
        super().__init__()
        self.attention.qkv_q = nn.Linear(WIDTH, WIDTH)

    def prepared(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        result: torch.Tensor = x + self.attention.qkv_q(x)
        return result


LORA = {"method": "lora", "at": ["q", "v"], "rank": 2, "alpha": 6}
IA3 = {"method": "ia3", "at": ["k", "v"]}
WHOLE = {"method": "lora", "modules": "*.attention.qkv", "rank": 2, "alpha": 6}


def by_hand(model: nn.Module, changed: Any) -> nn.Module:
    """The plain model, where a hook makes of W x what the additions' values say: scales come after all deltas."""

    def hook(path: str) -> Any:
        modules = changed.get_submodule(path).named_modules()
        added: dict[str, Any] = {name.rpartition(".")[2]: module for name, module in modules}

        def hooked(_: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
            parts = []
            for name, rows in PARTS.items():
                lora, ia3, part = added.get(f"{name}_lora"), added.get(f"{name}_ia3"), output[..., rows]
                part = part + 3 * args[0] @ lora.A.T @ lora.B.T if lora else part
                parts.append(part * ia3.l if ia3 else part)
            return torch.cat(parts, -1)

        return hooked

    plain = copy.deepcopy(model)
    for i in range(2):
        plain.get_submodule(f"blocks.{i}.attention.qkv").register_forward_hook(hook(f"blocks.{i}"))
    return plain


@pytest.mark.parametrize("entries", [[LORA], [IA3], [LORA, IA3], [IA3, LORA], [IA3, WHOLE]])
@pytest.mark.parametrize("kind", [MergedBlock, ClippedBlock, WindowedBlock, Named])
def test_as_by_hand(entries: list[dict[str, Any]], kind: type[nn.Module]) -> None:
    model = made(kind)
    changed = peftc.attach(copy.deepcopy(model), spec(entries))
    torch.testing.assert_close(changed(IDS), model(IDS))
    draw = torch.Generator().manual_seed(0)
    trained = [p for p in changed.parameters() if p.requires_grad]
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=draw))
    found, wanted = changed(IDS), by_hand(model, changed)(IDS)
    torch.testing.assert_close(found, wanted)
    draws = torch.randn(found.shape, generator=draw)
    ours, theirs = (torch.autograd.grad((out * draws).sum(), trained) for out in (found, wanted))
    torch.testing.assert_close(ours, theirs)
    assert all(gradient.any() for gradient in ours)


@pytest.mark.parametrize("kind", [MergedBlock, ClippedBlock, WindowedBlock])
def test_the_rows_of_each_part_are_known(kind: type[nn.Module]) -> None:
    sites = [site for unit in trace_model(made(kind)).units for site in unit.sites if site.name in PARTS]
    assert {s.name: s.rows for s in sites if isinstance(s, Projection)} == {
        name: tuple(range(24))[rows] for name, rows in PARTS.items()
    }
