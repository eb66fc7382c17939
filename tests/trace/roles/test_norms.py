"""Norms under other names, or of no module: what they make of numbers tells."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import peftc
from peftc.graph.sites import Sublayer
from peftc.trace.roles.normalising import is_norm
from tests.laws import perturbed, spec
from tests.trace.nets import IDS, WIDTH, Attending, Block, Net, made
from tests.trace.seen import sites


class Calm(nn.Module):
    """A norm under another name."""

    def __init__(self) -> None:
        super().__init__()
        self.gain, self.shift = nn.Parameter(torch.ones(WIDTH)), nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        apart = x - x.mean(-1, keepdim=True)
        return apart * torch.rsqrt(apart.square().mean(-1, keepdim=True) + 1e-5) * self.gain + self.shift


class Scale(nn.Module):
    """A number for each feature."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain


class Sign(Scale):
    def forward(self, x: Tensor) -> Tensor:
        return x.sign() * self.gain


class Over(Scale):
    """What knows the other positions."""

    def forward(self, x: Tensor) -> Tensor:
        return x / x.square().mean((1, 2), keepdim=True).sqrt() * self.gain


def rescaled(x: Tensor, gain: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * gain


class Post(nn.Module):
    """A block whose norms come after the sums: modules, a function, or written out."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.attention, self.up, self.down, self.how = Attending(), nn.Linear(WIDTH, 12), nn.Linear(12, WIDTH), how
        self.first, self.second = (Calm() if how == "module" else nn.Parameter(torch.ones(WIDTH)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.normed(x + self.attention(x), self.first)
        return self.normed(x + self.down(functional.relu(self.up(x))), self.second)

    def normed(self, x: Tensor, by: nn.Module | Tensor) -> Tensor:
        if isinstance(by, nn.Module):
            made: Tensor = by(x)
            return made
        if self.how == "written":
            apart = x - x.mean(-1, keepdim=True)
            spread = apart.square().mean(-1, keepdim=True)
            return apart / torch.sqrt(spread + 1e-5) * by
        return rescaled(x, by) if self.how == "own" else functional.layer_norm(x, (x.shape[-1],), by)


@pytest.mark.parametrize("module, wanted", [(Calm(), True), (nn.RMSNorm(8), True), (Scale(), False), (Sign(), False)])
def test_by_behaviour(module: nn.Module, wanted: bool) -> None:
    assert is_norm(module) is wanted
    assert not is_norm(Over()) and not is_norm(nn.Linear(WIDTH, WIDTH)) and not is_norm(nn.Dropout())


@pytest.mark.parametrize("how", ["module", "function", "own", "written"])
def test_what_comes_after_the_sum_is_the_sublayers_norm(how: str) -> None:
    ffn = sites(Post(how), WIDTH)["ffn"]
    assert isinstance(ffn, Sublayer) and ffn.norm


@pytest.mark.parametrize("how", ["module", "function", "own", "written"])
def test_an_adapter_reads_what_the_norm_makes(how: str) -> None:
    """x = LN(f + a), once more by hand on what the last block's own norm was given."""
    torch.manual_seed(0)
    model = perturbed(peftc.attach(Net([Post(how)]).eval(), spec([{"method": "adapter", "bottleneck": 3}])))
    hidden: list[Tensor] = []
    model.blocks[0].up.register_forward_pre_hook(lambda module, given: hidden.append(given[0]))
    model.blocks[0].down.register_forward_hook(lambda module, given, made: hidden.append(made))
    made = model(IDS)
    residual, output = hidden
    block = model.blocks[0]
    total = residual + output
    expected = block.normed(total + block.ffn_adapter(block.normed(total, block.second)), block.second)
    torch.testing.assert_close(made, expected)


class Split(Post):
    """Takes what a sum made apart, as no norm does."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(torch.chunk(x + self.down(functional.relu(self.up(x))), 2, dim=-1), dim=-1)


def test_what_makes_several_tensors_is_no_norm() -> None:
    ffn = sites(Split("own"), WIDTH)["ffn"]
    assert isinstance(ffn, Sublayer) and ffn.norm is None


class Pre(Post):
    """Norms before each sublayer, one gain stored less one, one shift; what the feed-forward adds is scaled."""

    def __init__(self, how: str) -> None:
        super().__init__(how)
        self.gain, self.shift, self.scale = (nn.Parameter(torch.zeros(WIDTH)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.normed(x, 1 + self.gain))
        normed = self.normed(x, self.second) + self.shift
        made: Tensor = x + self.scale * self.down(functional.relu(self.up(normed)))
        return made


@pytest.mark.parametrize("how", ["function", "own", "written"])
def test_gains_of_norms_that_are_no_modules_train(how: str) -> None:
    for block, gains in ((Post(how), ("first", "second")), (Pre(how), ("gain", "second", "shift"))):
        model = peftc.attach(Net([block]).eval(), spec([{"method": "norm"}]))
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert trained == {f"blocks.0.{name}" for name in gains}


class ByHead(nn.Module):
    """A norm of each head, with a gain for each of its channels: as many as channels, so that it could be a matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return rescaled(x, self.weight)


class Matrix(ByHead):
    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


@pytest.mark.parametrize(("module", "norm"), [(ByHead(), True), (nn.LayerNorm((4, 4)), True), (Matrix(), False)])
def test_a_gain_of_two_axes_is_no_matrix(module: nn.Module, norm: bool) -> None:
    assert is_norm(module) is norm


class NormedHeads(Attending):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(WIDTH, 16), nn.Linear(WIDTH, 16)
        self.value, self.out = nn.Linear(WIDTH, 16), nn.Linear(16, WIDTH)
        self.query_norm, self.key_norm = ByHead(), ByHead()

    def forward(self, x: Tensor, **kwargs: object) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (4, 4)) for part in (self.query, self.key, self.value))
        states = (part.transpose(1, 2) for part in (self.query_norm(q), self.key_norm(k), v))
        result: Tensor = self.out(functional.scaled_dot_product_attention(*states).transpose(1, 2).flatten(2))
        return result


class NormedBlock(Block):
    attends = NormedHeads


def test_the_map_before_a_norm_of_heads_is_the_query() -> None:
    model = peftc.attach(made(NormedBlock), spec([{"method": "lora", "at": ["q", "k"]}, {"method": "norm"}]))
    trained = {name.removeprefix("blocks.0.attention.") for name, p in model.named_parameters() if p.requires_grad}
    own = {"query_norm.weight", "key_norm.weight", "query_lora.A", "query_lora.B", "key_lora.A", "key_lora.B"}
    assert {name for name in trained if not name.startswith("blocks.")} == own
