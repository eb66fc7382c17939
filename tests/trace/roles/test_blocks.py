"""The sites of blocks that are written in unusual ways."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from peftc.graph.sites import Projection, Sublayer
from peftc.methods.adapter import Adapter
from peftc.methods.gate import Gate
from peftc.methods.lora import LoRA
from tests.trace.seen import sites

WIDTH = 8


class Flattened(nn.Module):
    """A feed-forward over batch and length in one axis, its norm behind the sum and the axis unfolded again."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 12), nn.Linear(12, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape
        x = x.reshape(-1, x.size(-1))
        x = (x + self.down(functional.relu(self.up(x)))).view(shape)
        normed: Tensor = self.norm(x)
        return normed


def test_a_stream_with_batch_and_length_in_one_axis() -> None:
    found = sites(Flattened(), WIDTH)
    ffn, up = found["ffn"], found["ffn_up"]
    assert isinstance(ffn, Sublayer) and isinstance(up, Projection)
    assert (ffn.output, ffn.norm, ffn.flat, up.flat) == ("down", "norm", True, True)


@pytest.mark.parametrize("kind", ["sequence", "masked", "central"])
def test_no_gate_for_an_example_where_examples_are_one_axis(kind: str) -> None:
    found = sites(Flattened(), WIDTH)
    for method, name in ((Adapter(), "ffn"), (LoRA(), "ffn_up")):
        assert "cannot tell the examples apart" in str(method.gate_refusal(Gate.model_validate(kind), found[name]))


def test_a_token_gate_there_stands_alone() -> None:
    ffn = sites(Flattened(), WIDTH)["ffn"]
    assert Adapter().gate_refusal(Gate(kind="token"), ffn) is None
    assert Adapter().gate_refusal(Gate(kind="token", scope="layer"), ffn)
    assert Adapter().gate_refusal(Gate(kind="constant", scope="layer"), ffn) is None


class Routed(nn.Module):
    """Weights of two experts in one tensor, a number for each that says how much; beside them perhaps one for all."""

    def __init__(self, shared: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.router: nn.Module = nn.Linear(WIDTH, 2)
        self.experts = Experts()
        self.shared = nn.Sequential(nn.Linear(WIDTH, 12), nn.SiLU(), nn.Linear(12, WIDTH)) if shared else None

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        flat = normed.view(-1, WIDTH)
        mixed = self.experts(flat, self.router(flat)).view(x.shape)
        mixed = mixed if self.shared is None else mixed + self.shared(normed)
        made: Tensor = x + mixed
        return made


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(2, WIDTH, WIDTH))

    def forward(self, x: Tensor, routes: Tensor) -> Tensor:
        return torch.einsum("nd,edf,ne->nf", x, self.weight, routes)


class Deciding(Routed):
    """A feed-forward that says how much of each expert."""

    def __init__(self) -> None:
        super().__init__(shared=False)
        self.router = nn.Sequential(nn.Linear(WIDTH, 12), nn.SiLU(), nn.Linear(12, 2))


def test_what_chooses_between_experts_is_no_feed_forward() -> None:
    found = sites(Deciding(), WIDTH)
    ffn = found["ffn"]
    assert isinstance(ffn, Sublayer)
    assert (ffn.input, ffn.output) == ("norm", "view_1")
    assert not any(name.startswith("ffn_") for name in found)


class Wide(Routed):
    """Keeps its stream in another dtype than its norm."""

    def __init__(self) -> None:
        super().__init__(shared=False)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x.to(self.norm.weight.dtype))
        flat = normed.view(-1, WIDTH)
        made: Tensor = x + self.experts(flat, self.router(flat)).view(x.shape)
        return made


def test_the_norm_in_front_of_experts_may_read_another_dtype() -> None:
    ffn = sites(Wide(), WIDTH)["ffn"]
    assert isinstance(ffn, Sublayer)
    assert (ffn.input, ffn.residual) == ("norm", "x")


@pytest.mark.parametrize("shared", [False, True])
def test_what_experts_make_joins_the_stream_as_a_whole(shared: bool) -> None:
    found = sites(Routed(shared), WIDTH)
    ffn = found["ffn"]
    assert isinstance(ffn, Sublayer)
    assert (ffn.residual, ffn.input, ffn.flat) == ("x", "norm", False)
    assert ffn.output == ("add" if shared else "view_1")
    assert [name for name in found if name.startswith("ffn_")] == (["ffn_up", "ffn_down"] if shared else [])


class Beside(nn.Module):
    """Attention and experts side by side on one norm: (x + attention) + experts."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attention, self.experts = nn.LayerNorm(WIDTH), Attending(), Routed(shared=False)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        flat = normed.view(-1, WIDTH)
        mixed = self.experts.experts(flat, self.experts.router(flat)).view(x.shape)
        made: Tensor = x + self.attention(normed) + mixed
        return made


class Attending(nn.Module):
    """Half of each head turned, and a norm of the values' projection between two: two linears on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.squeeze, self.spread = nn.Linear(WIDTH, 8), nn.Linear(WIDTH, 4), nn.Linear(2, 16)
        self.out = nn.Linear(8, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        query = self.query(x).unflatten(-1, (2, 4)).transpose(1, 2)
        query = torch.cat([query[..., :2].sin(), query[..., 2:]], -1)
        narrow, turned = self.squeeze(x).split([2, 2], -1)
        key, value = self.spread(narrow.tanh()[:, None]).squeeze(1).unflatten(-1, (2, 8)).transpose(1, 2).chunk(2, -1)
        key = torch.cat([turned[:, None].expand(-1, 2, -1, -1).cos(), key[..., 2:]], -1)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        made: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return made


def test_a_feed_forward_beside_the_attention() -> None:
    found = sites(Beside(), WIDTH)
    ffn = found["ffn"]
    assert isinstance(ffn, Sublayer)
    assert (ffn.residual, ffn.output) == ("x", "view_1")


def test_keys_of_several_linears_are_the_largest_ones() -> None:
    found = {name: site for name, site in sites(Beside(), WIDTH).items() if isinstance(site, Projection)}
    assert list(found) == ["q", "k", "v", "o"]
    assert [found[name].module for name in found] == [
        "attention.query", "attention.spread", "attention.spread", "attention.out",
    ]  # fmt: skip
    assert found["q"].rows is None
    assert found["k"].rows == (2, 3, 10, 11)
    assert found["v"].rows == (4, 5, 6, 7, 12, 13, 14, 15)
    assert found["v"].ones == (1,)


def test_the_larger_of_two_feed_forwards() -> None:
    ffn = sites(Twice(), WIDTH)["ffn"]
    assert isinstance(ffn, Sublayer)
    assert ffn.output == "wide_2"


def mixed(x: Tensor, residual: Tensor, share: float) -> Tensor:
    return share * x + residual


def blended(x: Tensor, residual: Tensor, share: float) -> Tensor:
    return share * x * residual


class Mixing(nn.Module):
    """Takes what its feed-forward makes into the stream by a function of its own."""

    def __init__(self, adds: bool) -> None:
        super().__init__()
        self.up, self.down, self.adds = nn.Linear(WIDTH, 12), nn.Linear(12, WIDTH), adds

    def forward(self, x: Tensor) -> Tensor:
        made = self.down(functional.relu(self.up(x)))
        return mixed(made, x, 0.5) if self.adds else blended(made, x, 0.5)


def test_a_function_that_adds_is_a_sum() -> None:
    ffn = sites(Mixing(adds=True), WIDTH)["ffn"]
    assert isinstance(ffn, Sublayer)
    assert (ffn.output, ffn.residual, ffn.sum) == ("down", "x", "mixed")
    assert "ffn" not in sites(Mixing(adds=False), WIDTH)


class Scaling(nn.Module):
    """Scales and moves each feature of two tensors before it adds them; or multiplies them."""

    def __init__(self, adds: bool) -> None:
        super().__init__()
        self.adds, self.scale = adds, nn.Parameter(torch.ones(WIDTH))
        self.residual_scale, self.bias = nn.Parameter(torch.ones(WIDTH)), nn.Parameter(torch.zeros(WIDTH))

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        residual = (residual + self.bias) * self.residual_scale
        return x * self.scale + residual if self.adds else x * self.scale * residual


class Scaled(Mixing):
    """Takes what its feed-forward makes into the stream by a module."""

    def __init__(self, adds: bool) -> None:
        super().__init__(adds)
        self.joins = Scaling(adds)

    def forward(self, x: Tensor) -> Tensor:
        joined: Tensor = self.joins(self.down(functional.relu(self.up(x))), x)
        return joined


def test_a_module_that_adds_is_a_sum() -> None:
    ffn = sites(Scaled(adds=True), WIDTH)["ffn"]
    assert isinstance(ffn, Sublayer)
    assert (ffn.output, ffn.residual, ffn.sum) == ("down", "x", "joins")
    assert "ffn" not in sites(Scaled(adds=False), WIDTH)


class Twice(nn.Module):
    """A feed-forward, and a narrow one after it."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Sequential(nn.Linear(WIDTH, 20), nn.ReLU(), nn.Linear(20, WIDTH))
        self.narrow = nn.Sequential(nn.Linear(WIDTH, 3), nn.ReLU(), nn.Linear(3, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.wide(x)
        made: Tensor = x + self.narrow(x)
        return made


class TwoStreams(nn.Module):
    """One feed-forward for two streams, of which the first goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 12), nn.Linear(12, WIDTH)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        beside = x.mean(1, keepdim=True)
        x = x + self.down(functional.relu(self.up(x)))
        return x, beside + self.down(functional.relu(self.up(beside)))


def test_the_feed_forward_of_the_stream_that_goes_on() -> None:
    found = sites(TwoStreams(), WIDTH)["ffn"]
    assert isinstance(found, Sublayer)
    assert (found.output, found.residual) == ("down", "x")


class Streams(nn.Module):
    """Two streams, mixed by a matrix that they make; what the feed-forward makes of both joins each."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.up, self.down = nn.Linear(WIDTH, 4), nn.Linear(WIDTH, 12), nn.Linear(12, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        streams = torch.stack([x, x.tanh()], 2)
        collapsed = streams.sum(2)
        made = self.down(functional.relu(self.up(collapsed)))
        streams = torch.matmul(self.mix(collapsed).unflatten(-1, (2, 2)), streams)
        joined: Tensor = made.unsqueeze(2) * self.mix(collapsed)[..., :2, None] + streams
        return joined


def test_streams_that_are_mixed_are_the_residual() -> None:
    ffn = sites(Streams(), WIDTH)["ffn"]
    assert isinstance(ffn, Sublayer)
    assert (ffn.output, ffn.residual, ffn.sum) == ("mul", "matmul", "add")
