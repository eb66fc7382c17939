"""Attentions in a module's own words: which a prefix can join, and why it cannot join the others."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from peftc.errors import PeftcError
from peftc.graph.sites import Attention, Written
from peftc.methods.prefix import Prefix
from peftc.trace.roles.attention import attention_sites
from peftc.trace.tracer.patches import installed
from tests.trace.nets import Attending, Block, Net, attached, made
from tests.trace.seen import seen

WIDTH, HEADS, SPAN = 8, 2, 4
Between = Callable[[Tensor, Tensor], Tensor]


class Product(nn.Module):
    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        return torch.matmul(one, other)


class Looking(nn.Module):
    """softmax(before(query key', bias)), after(weights, bias) value; the bias has a number for each key of an example.

    `folded`: batch and heads are one axis.
    """

    def __init__(self, before: Between, after: Between, folded: str = "") -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.product, self.drop = Product(), nn.Dropout(0.1)
        self.before, self.after, self.folded = before, after, folded

    def heads(self, x: Tensor) -> Tensor:
        apart: Tensor = x.view(x.shape[0], x.shape[1], HEADS, SPAN).transpose(1, 2)
        turned = apart.transpose(0, 1) if self.folded == "heads first" else apart
        return turned.reshape(-1, x.shape[1], SPAN) if self.folded else apart

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (self.heads(part(x)) for part in (self.query, self.key, self.value))
        bias = x.mean(-1)[:, None, None]
        scores = self.before(self.product(query / SPAN**0.5, key.transpose(-1, -2)), bias)
        made: Tensor = self.product(self.after(self.drop(torch.softmax(scores, -1)), bias), value)
        return made


class Turned(nn.Module):
    """Over (length, batch, width), its heads folded into the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        length, batch, _ = x.shape
        query, key, value = (
            part(x).view(length, batch, HEADS, SPAN).permute(1, 2, 0, 3).reshape(batch * HEADS, -1, SPAN)
            for part in (self.query, self.key, self.value)
        )
        made: Tensor = torch.bmm(torch.softmax(torch.bmm(query, key.transpose(1, 2)), -1), value)
        return made


def test_a_length_before_the_batch() -> None:
    (site,) = (s for s in attention_sites(seen(Turned(), WIDTH)) if isinstance(s, Attention))
    assert isinstance(site.written, Written), site.written
    assert site.written.heads == HEADS


def same(scores: Tensor, bias: Tensor) -> Tensor:
    return scores


def found(before: Between = same, after: Between = same, folded: str = "") -> Attention:
    made = [s for s in attention_sites(seen(Looking(before, after, folded), WIDTH)) if isinstance(s, Attention)]
    assert len(made) == 1
    return made[0]


JOINED: dict[str, tuple[Between, int]] = {
    "nothing": (same, 0),
    "a scale": (lambda s, b: s * 0.5, 1),
    "a soft cap": (lambda s, b: torch.tanh(s / 30) * 30, 3),
    "a bias": (lambda s, b: s + b, 0),
    "a bias, then a scale": (lambda s, b: (s + b) * 0.5, 1),
    "a mask": (lambda s, b: s.masked_fill(b > 0, -1e4), 0),
    "a choice": (lambda s, b: torch.where(b > 0, s, -1e4), 0),
    "a choice of a tensor": (lambda s, b: torch.where(b > 0, s, torch.full_like(s, -1e4)), 0),
    "zeros where nothing hides": (lambda s, b: s + torch.zeros_like(s).masked_fill(b > 0, -1e4), 0),
    "a mask that multiplies": (lambda s, b: s * b - 1e4 * (1 - b), 0),
    "the largest taken off": (lambda s, b: s - s.amax(-1).unsqueeze(-1), 1),
    "a view there and back": (lambda s, b: s.flatten(0, 1).view(-1, HEADS, s.shape[2], s.shape[3]), 2),
}


@pytest.mark.parametrize("name", JOINED)
def test_what_the_scores_of_learnt_keys_pass(name: str) -> None:
    before, copied = JOINED[name]
    written = found(before).written
    assert isinstance(written, Written), written
    assert (written.heads, written.key_width, written.value_width) == (HEADS, SPAN, SPAN)
    assert len(written.copied) == copied
    assert Prefix().refusal(found(before)) is None


def test_a_choice_is_known_while_functions_are_patched() -> None:
    view = seen(Looking(JOINED["a choice of a tensor"][0], same), WIDTH)
    with installed():
        (site,) = (s for s in attention_sites(view) if isinstance(s, Attention))
    assert isinstance(site.written, Written), site.written


def test_a_view_whose_number_of_keys_is_another_call_s() -> None:
    view = seen(Looking(lambda s, b: s.view(s.shape[0], HEADS, s.shape[2], s.shape[3]), same), WIDTH)
    (viewed,) = (n for n in view.graph.nodes if n.target == "view" and n.args[0].name == "product")
    viewed.args[-1].meta["value"] = (98, 99)
    (site,) = (s for s in attention_sites(view) if isinstance(s, Attention))
    assert isinstance(site.written, Written), site.written


def test_a_mask_over_the_weights_is_one_for_the_keys_of_its_own() -> None:
    site = found(after=lambda w, b: w.masked_fill(b < 0, 0))
    assert isinstance(site.written, Written), site.written
    assert site.written.masks == ("masked_fill",)


@pytest.mark.parametrize(
    ("site", "said"),
    [
        (lambda: found(lambda s, b: s.cumsum(-1)), "its scores pass cumsum"),
        (lambda: found(lambda s, b: s.transpose(-1, -2)), "its scores pass transpose"),
        (lambda: found(lambda s, b: s + torch.cat([b, b], -1)[..., b.shape[-1] :]), "counted from the last key"),
        (lambda: found(after=lambda w, b: w * b), "its weights pass mul"),
        (lambda: found(after=lambda w, b: w.cumsum(-1)), "its weights pass cumsum"),
        (lambda: found(after=lambda w, b: (w, w.mean(1).mean(1).mean(1))[0]), "its weights pass mean"),
        (lambda: found(folded="batch first"), None),
        (lambda: found(folded="heads first"), "its keys and values are not"),
    ],
)
def test_what_no_prefix_can_join(site: Callable[[], Attention], said: str | None) -> None:
    refusal = Prefix().refusal(site())
    assert refusal is None if said is None else refusal and said in refusal


class Chunked(nn.Module):
    """One head, whose queries, keys and values are chunks of one linear map."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out, self.norm = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(self.norm(x)).chunk(3, -1)
        read: Tensor = x + self.out((query @ key.transpose(1, 2)).softmax(-1) @ value)
        return read


def test_one_head_of_chunks_has_its_parts() -> None:
    attached(made(Chunked), {"method": "lora", "at": ["q", "v"], "rank": 2})


class Branching(Attending):
    """Its softmax stands in both branches."""

    def forward(self, x: Tensor, masked: bool = False, **kwargs: object) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (2, 4)).transpose(1, 2) for part in (self.query, self.key, self.value))
        scores = q @ k.transpose(-1, -2)
        weights = scores.tril().softmax(-1) if masked else scores.softmax(-1)
        result: Tensor = self.out((weights @ v).transpose(1, 2).flatten(2))
        return result


class BranchingBlock(Block):
    attends = Branching

    def forward(self, x: Tensor, masked: bool = False, **kwargs: object) -> Tensor:
        attended = x + self.attention(x, masked=masked)
        result: Tensor = attended + self.down(torch.relu(self.up(attended)))
        return result


class BranchingNet(Net):
    """Two blocks of one class, of which the second is masked."""

    def __init__(self) -> None:
        super().__init__([BranchingBlock(), BranchingBlock()])

    def forward(self, ids: Tensor) -> Tensor:
        x: Tensor = self.embedding(ids)
        for index, block in enumerate(self.blocks):
            x = block(x, masked=index > 0)
        return x


def test_of_two_softmaxes_one_is_chosen() -> None:
    base = BranchingNet()
    attached(base, {"method": "lora", "at": ["q", "k", "v", "o"]})
    with pytest.raises(PeftcError, match="with 2 softmaxes, of which one is chosen"):
        attached(base, {"method": "prefix"})
