"""Where a model keeps its blocks, and what in them are no blocks: heads."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AlbertConfig, AlbertModel

import peftc
from peftc.trace import trace_model
from tests.laws import perturbed, spec
from tests.trace.nets import IDS, WIDTH, Attending, Block, Net, attached

SITES = {"q", "k", "v", "o", "attention", "attention_output", "ffn_up", "ffn_down", "ffn"}


class Normed(Block):
    """A block with a norm, as blocks have one."""

    def __init__(self, attention: nn.Module | None = None) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.add_module("attention", attention or Attending())

    def prepared(self, x: Tensor, **kwargs: object) -> Tensor:
        made: Tensor = self.norm(x)
        return made


class Held(nn.Module):
    """An embedding, and two blocks in a sequence, in a dict or as attributes."""

    def __init__(self, how: str, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.embedding, self.how = nn.Embedding(11, WIDTH), how
        if how == "attributes":
            self.block_0, self.block_1 = blocks
        else:
            self.body = nn.Sequential(*blocks) if how == "sequence" else nn.ModuleDict({"a": blocks[0], "b": blocks[1]})

    def blocks(self) -> Iterator[nn.Module]:
        yield from (self.block_0, self.block_1) if self.how == "attributes" else self.body.children()

    def forward(self, ids: Tensor) -> Tensor:
        x: Tensor = self.embedding(ids)
        for block in self.blocks():
            x = block(x)
        return x


def held(how: str, attention: nn.Module | None = None) -> Held:
    torch.manual_seed(0)
    return Held(how, [Normed(copy.deepcopy(attention)) for _ in range(2)]).eval()


@pytest.mark.parametrize("how", ["sequence", "dict", "attributes"])
def test_blocks_are_layers_wherever_they_are_held(how: str) -> None:
    layers = trace_model(held(how)).layers
    assert [layer.index for layer in layers] == [0, 1]
    assert all(set(layer.site_names()) == SITES for layer in layers)


def test_a_sequence_is_changed_as_a_list_is() -> None:
    attached(held("sequence"))


class Head(nn.Module):
    """An attention of its own small width."""

    def __init__(self, whole: bool) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, 4) for _ in range(3))
        self.whole = whole

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.query(x), self.key(x), self.value(x)
        if self.whole:
            return functional.scaled_dot_product_attention(q, k, v)
        weighed: Tensor = functional.softmax(q @ k.transpose(-2, -1) / 2, dim=-1) @ v
        return weighed


class Heads(nn.Module):
    def __init__(self, whole: bool) -> None:
        super().__init__()
        self.heads, self.out = nn.ModuleList(Head(whole) for _ in range(2)), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.out(torch.cat([head(x) for head in self.heads], dim=-1))
        return made


@pytest.mark.parametrize("whole", [True, False])
def test_heads_that_are_modules_are_each_changed(whole: bool) -> None:
    """In whatever the blocks are held: a head is no block."""
    model = attached(held("sequence", Heads(whole)))
    added = {path for path in model.added if path.endswith("_lora")}  # type: ignore[union-attr]
    owners = {path.rpartition(".")[0] for path in added}
    assert owners == {f"body.{block}.attention.heads.{head}" for block in range(2) for head in range(2)}


class Maps(nn.Module):
    """Two heads, whose maps stand in lists."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.ModuleList(nn.Linear(WIDTH, 4) for _ in range(2)) for _ in range(3))
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        made = []
        for query, key, value in zip(self.query, self.key, self.value, strict=True):
            made.append(functional.softmax(query(x) @ key(x).transpose(-2, -1) / 2, dim=-1) @ value(x))
        result: Tensor = self.out(torch.cat(made, dim=-1))
        return result


def test_heads_that_are_no_units_have_no_q() -> None:
    """One of them alone would be changed: modules: reaches each."""
    base = held("sequence", Maps())
    with pytest.raises(peftc.PeftcError, match="one of 2 side by side"):
        attached(base, {"method": "lora"})
    model = attached(base, {"method": "lora", "modules": "*.query.*"}, {"method": "adapter", "bottleneck": 2})
    assert sum(path.endswith("lora") for path in model.added) == 4  # type: ignore[union-attr]


class Twice(Normed):
    """Attends once more, to something else perhaps."""

    def __init__(self) -> None:
        super().__init__()
        self.further = Attending()

    def prepared(self, x: Tensor, **kwargs: object) -> Tensor:
        return self.norm(x) + self.further(x)  # type: ignore[no-any-return]


def test_a_layer_that_attends_twice_is_changed_twice() -> None:
    torch.manual_seed(0)
    base = Held("sequence", [Twice(), Twice()]).eval()
    entry = {"method": "lora", "gate": {"kind": "sequence", "scope": "layer"}}
    model = peftc.attach(base, spec([entry]))
    owners = {path.rpartition(".")[0] for path in model.added if path.endswith("_gate")}  # type: ignore[union-attr]
    assert owners == {f"body.{i}.{name}" for i in range(2) for name in ("attention", "further")}
    assert torch.isfinite(model(IDS)).all()


class Group(nn.Module):
    """Nothing but a list of one block, or of two."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.inner = nn.ModuleList(Normed() for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.inner:
            x = block(x)
        return x


@pytest.mark.parametrize("count", [1, 2])
def test_a_module_that_only_holds_a_list_is_no_block(count: int) -> None:
    layers = trace_model(Net([Group(count), Group(count)])).layers
    assert [layer.path for layer in layers] == [f"blocks.{g}.inner.{i}" for g in range(2) for i in range(count)]


def test_the_states_of_grouped_blocks_are_recorded() -> None:
    """transformers records what its layers return, and a group of theirs is no layer."""
    config = AlbertConfig(vocab_size=11, num_hidden_layers=3, hidden_size=16, embedding_size=8, intermediate_size=24)
    config.num_attention_heads = 2
    base = AlbertModel(config).eval()
    model = peftc.attach(copy.deepcopy(base), spec([{"method": "adapter", "bottleneck": 2}]))
    wanted, found = (m(IDS, output_hidden_states=True).hidden_states for m in (base, model))
    torch.testing.assert_close(found, wanted)


class Stage(nn.Module):
    """Two blocks in a list, and an attention of the stage's own behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.pool = nn.ModuleList([Normed(), Normed()]), Attending()

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        pooled: Tensor = x + self.pool(x)
        return pooled


def test_what_attends_in_a_stage_makes_it_no_block() -> None:
    torch.manual_seed(0)
    model = Net([Stage(), Stage()]).eval()
    inner = [f"blocks.{stage}.blocks.{index}" for stage in range(2) for index in range(2)]
    assert sorted(layer.path for layer in trace_model(model).layers) == inner
    changed: Any = perturbed(attached(model))
    changed(IDS).sum().backward()
    assert all(changed.get_parameter(name).grad is not None for name in changed.added_names())


class Feed(nn.Module):
    """A feed-forward behind its norm, which its model adds to what it read."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 12), nn.Linear(12, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.down(torch.tanh(self.up(self.norm(x))))
        return made


class Pairs(nn.Module):
    """Lists of an attention and a feed-forward, each added by the model itself."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, WIDTH)
        self.layers = nn.ModuleList(nn.ModuleList([Attending(), Feed()]) for _ in range(2))

    def forward(self, ids: Tensor) -> Tensor:
        x: Tensor = self.embedding(ids)
        for pair in self.layers:
            for part in pair.children():
                x = part(x) + x
        return x


def test_a_feed_forward_in_one_list_with_its_attention_has_an_output() -> None:
    """It is what the feed-forward returns: the residual is added outside."""
    torch.manual_seed(0)
    base = Pairs().eval()
    layers = trace_model(base).layers
    assert [set(layer.site_names()) & {"q", "ffn"} for layer in layers] == [{"q"}, {"ffn"}] * 2
    for variant in ("pfeiffer", "parallel"):
        model = attached(base, {"method": "lora"}, {"method": "adapter", "variant": variant, "bottleneck": 2})
        perturbed(model)
        assert not torch.allclose(model(IDS), base(IDS))


class Handing(nn.Module):
    """The residual around what it holds, which is handed all keywords, whether it takes any or not."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.norm, self.inner = nn.LayerNorm(WIDTH), inner

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        made: Tensor = self.inner(self.norm(x), **kwargs) + x
        return made


class Plain(Feed):
    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        made: Tensor = super().forward(x)
        return made if scale is None else made * scale


class Handed(Pairs):
    """`given` reaches each feed-forward as a keyword."""

    def __init__(self, given: dict[str, Tensor]) -> None:
        super().__init__()
        pairs = ([Handing(Attending()), Handing(Plain() if given else Feed())] for _ in range(2))
        self.layers, self.given = nn.ModuleList(map(nn.ModuleList, pairs)), given

    def forward(self, ids: Tensor) -> Tensor:
        x: Tensor = self.embedding(ids)
        for pair in self.layers:
            attend, feed = pair.children()
            x = feed(attend(x), **self.given)
        return x


@pytest.mark.parametrize("given", [{}, {"scale": torch.tensor(0.5)}])
def test_what_takes_no_further_keywords_is_looked_into(given: dict[str, Tensor]) -> None:
    torch.manual_seed(0)
    base = Handed(given).eval()
    names = [layer.site_names() for layer in trace_model(base).layers]
    assert [set(found) & {"q", "ffn_up", "ffn"} for found in names] == [{"q"}, {"ffn_up", "ffn"}] * 2
    model: Any = attached(base, {"method": "lora", "at": "ffn_up", "layers": "1, 3", "rank": 2})
    perturbed(model)
    assert not torch.allclose(model(IDS), base(IDS))
    with pytest.raises((TypeError, ValueError), match=r"further keywords|unexpected keyword"):
        model.layers[0][1](model.embedding(IDS), other=1, **given)
