"""Which linear map is q, k or v where several make an attention's argument, or where they pass through one tensor."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import peftc
from peftc.errors import PeftcError
from tests.laws import perturbed, spec
from tests.trace.nets import IDS, WIDTH, Attending, Block, made

Parts = tuple[Tensor, Tensor, Tensor]


def together(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    first, second = torch.stack([q, k], 2).unbind(2)
    return first, second


def plain(own: Any, x: Tensor) -> Parts:
    return own.query(x), own.key(x), own.value(x)


def stacked(own: Any, x: Tensor) -> Parts:
    q, k, v = torch.stack(plain(own, x), 2).unbind(2)
    return q, k, v


def by_features(own: Any, x: Tensor) -> Parts:
    q, k, v = torch.cat(plain(own, x), -1).chunk(3, -1)
    return q, k, v


def by_examples(own: Any, x: Tensor) -> Parts:
    q, k, v = torch.cat(plain(own, x), 0).chunk(3, 0)
    return q, k, v


def in_a_function(own: Any, x: Tensor) -> Parts:
    q, k, v = plain(own, x)
    return (*together(q, k), v)


def after_positions(own: Any, x: Tensor) -> Parts:
    places = own.places[: x.shape[1]]
    return own.further(places) + own.query(x), own.further(places) + own.key(x), own.value(x)


def after_a_gate(own: Any, x: Tensor) -> Parts:
    q, k, v = plain(own, x)
    return own.further(x).sigmoid() * q, own.further(x).sigmoid() * k, v


def after_a_low_rank(own: Any, x: Tensor) -> Parts:
    q, k, v = plain(own, x)
    return own.further(own.again(x)) + q, own.further(own.again(x)) + k, v


def product(own: Any, x: Tensor) -> Parts:
    q, k, v = plain(own, x)
    return own.further(x) * q, k, v


CLEAR = (stacked, by_features, by_examples, in_a_function, after_positions, after_a_gate, after_a_low_rank)
WAYS = {way.__name__: way for way in (*CLEAR, product)}


class Made(Attending):
    """Attends to what a function makes of its maps."""

    def __init__(self) -> None:
        super().__init__()
        self.further, self.again, self.way = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), ""
        self.register_buffer("places", torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in WAYS[self.way](self, x))
        mixed = functional.scaled_dot_product_attention(q, k, v)
        result: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return result


class MadeBlock(Block):
    attends = Made


def model(way: str) -> Any:
    base: Any = made(MadeBlock)
    for block in base.blocks:
        block.attention.way = way
    return base


@pytest.mark.parametrize("name", ["query", "key", "value"])
@pytest.mark.parametrize("way", [way.__name__ for way in CLEAR])
def test_a_site_is_the_map_that_makes_it(way: str, name: str) -> None:
    base = model(way)
    changed: Any = perturbed(peftc.attach(copy.deepcopy(base), spec([{"method": "lora", "at": name[0], "rank": 2}])))
    wanted: Any = copy.deepcopy(base)
    for own, other in zip(wanted.blocks, changed.blocks, strict=True):
        lora = getattr(other.attention, f"{name}_lora")
        with torch.no_grad():
            getattr(own.attention, name).weight += lora.scale * lora.B @ lora.A
    torch.testing.assert_close(changed(IDS), wanted(IDS))
    assert not torch.allclose(changed(IDS), base(IDS))


def test_two_maps_that_nothing_tells_apart_are_no_site() -> None:
    base, own = (
        model("product"),
        re.escape('its other linear maps go by modules: "*.attention.query", "*.attention.further"'),
    )
    with pytest.raises(PeftcError, match=f"no site 'q'(?s:.)*{own}"):
        peftc.attach(copy.deepcopy(base), spec([{"method": "lora", "at": "q"}]))
    attached: Any = peftc.attach(base, spec([{"method": "lora", "at": ["k", "v"]}, {"method": "prefix"}]))
    assert {name.rpartition(".")[2] for name in attached.added} == {"key_lora", "value_lora", "attention_prefix"}
