"""Sums in place: every name of the tensor has them; under another view of it they are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peftc.errors import PeftcError
from tests.trace.nets import Attending, Block, attached, made


class Named(Block):
    """Its states have a second name while the attention is added to them."""

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        x = x * 2
        y, attended = x, self.attention(x)
        y += attended
        x = x + y
        result: Tensor = x + self.down(torch.relu(self.up(x)))
        return result


class Marking(Block):
    """A second name of a mask, and parts of one tensor that have no number in common."""

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        x = x + self.attention(x)
        seen = both = x > 0
        both &= x < 1
        raised = self.up(x * seen)
        first, last = raised[..., :4], raised[..., 4:]
        first *= 2
        result: Tensor = x + self.down(torch.relu(torch.cat([first, last], -1)))
        return result


class Written(Block):
    """Adds to a part of its states, and reads the whole."""

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        x = x * 2
        x[:, 0] += self.attention(x)[:, 0]
        result: Tensor = x + self.down(torch.relu(self.up(x)))
        return result


class Biased(Attending):
    """Adds a bias in place that is of float32 in a model of bfloat16, too: the scores keep their dtype."""

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        q, k, v = (p(x).unflatten(-1, (2, 4)).transpose(1, 2) for p in (self.query, self.key, self.value))
        scores = q @ k.transpose(-1, -2)
        scores += torch.where(torch.arange(x.shape[1], device=x.device) > 0, 30.1, 31.3)
        result: Tensor = self.out((scores.softmax(-1).to(v.dtype) @ v).transpose(1, 2).flatten(2))
        return result


class BiasedBlock(Block):
    attends = Biased


@pytest.mark.parametrize("kind", [Named, Marking, Written, BiasedBlock])
def test_every_name_has_the_sum(kind: type[nn.Module]) -> None:
    attached(made(kind))


class Viewed(Block):
    """Adds to a view of its states, and reads them as they were called before."""

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        x = x * 2
        rows, attended = x.view(-1, x.shape[-1]), self.attention(x)
        rows += attended.flatten(0, 1)
        result: Tensor = x + self.down(torch.relu(self.up(x)))
        return result


class Shifting(Attending):
    """Changes what it is given, which its block adds its output to."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        x += self.shift
        return super().forward(x)


class Shifted(Block):
    attends = Shifting


@pytest.mark.parametrize(
    ("kind", "site", "said"),
    [
        (Viewed, "ffn_up", r"Viewed: it changes rows \(.*\) in place, and reads it as another view"),
        (Shifted, "q", "Shifting: it changes x in place, which what calls it may read again"),
    ],
)
def test_what_is_read_elsewhere_is_refused(kind: type[nn.Module], site: str, said: str) -> None:
    with pytest.raises(PeftcError, match=said):
        attached(made(kind), {"method": "lora", "at": site})
