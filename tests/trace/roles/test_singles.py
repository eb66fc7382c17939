"""Linear maps inside layers that have no role: places by module name, where their forward is all that reads them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from peftc.errors import PeftcError
from peftc.graph.sites import Projection
from peftc.spec.schema import Base
from peftc.trace import trace_model
from peftc.trace.record.model import build
from peftc.trace.record.observed import observe
from peftc.trace.roles.singles import singles
from tests.trace.nets import IDS, WIDTH, Block, Net, attached, made


class Routing(nn.Linear):
    def forward(self, x: torch.Tensor) -> Any:
        scores = super().forward(x)
        return scores, scores.argmax(-1)


class Gating(nn.Linear):
    """As wide as a linear map's result, and none."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(super().forward(x))


class Square(nn.Module):
    """A matrix that stands as a linear map's does, or the other way round, in a class of its own."""

    def __init__(self, turned: bool) -> None:
        super().__init__()
        self.weight, self.turned = nn.Parameter(torch.randn(WIDTH, WIDTH)), turned

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = x @ (self.weight if self.turned else self.weight.T)
        return result


class Mixing(nn.Module):
    """A mixture that a kernel may compute in training, from a weight that it is handed."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out, self.idle = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.router = Routing(WIDTH, 2)

    def fused(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor | None:
        return None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if isinstance(self.into.weight, torch.Tensor):
            x = x.to(self.into.weight.dtype)
        scores, _ = self.router(x)
        mixed = self.fused(x, self.out.weight) if self.training else None
        if mixed is None:
            mixed = self.out(torch.tanh(self.into(x)))
        result: torch.Tensor = mixed * scores.amax(-1, keepdim=True)
        return result


class Mixed(Block):
    def __init__(self) -> None:
        super().__init__()
        self.mixing = Mixing()

    def prepared(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        result: torch.Tensor = x + self.mixing(x)
        return result


def test_what_has_no_role_is_a_unit_of_its_own_or_says_why_not() -> None:
    trace = trace_model(made(Mixed))
    inside = [(path, unit) for path, unit in trace.others if path.startswith("blocks")]
    assert [(path, unit.sites[0].name) for path, unit in inside] == [
        ("blocks.0.mixing.into", "mixing.into"), ("blocks.1.mixing.into", "mixing.into"),
    ]  # fmt: skip
    assert len({id(unit) for _, unit in inside}) == 1
    assert {path.removeprefix("blocks.0.mixing."): why for path, why in trace.fixed.items() if ".0." in path} == {
        "out": "Mixing reads its weight itself, and may do without its forward",
        "idle": "its forward is never called",
        "router": "Routing is no linear map and no embedding",
    }


def test_where_nothing_can_be_added() -> None:
    with pytest.raises(PeftcError, match=r"'blocks.0.mixing.out' .* is no place to attach: Mixing reads its weight"):
        attached(made(Mixed), {"method": "lora", "modules": "*.mixing.out"})


def test_an_addition_in_one_layer() -> None:
    entry = {"method": "lora", "modules": "*.into", "layers": "1", "rank": 2, "gate": "token"}
    model, changed = made(Mixed), attached(made(Mixed), entry)
    added = {name: p for name, p in changed.named_parameters() if p.requires_grad}
    assert {name.rpartition(".into_lora")[0] for name in added} == {"blocks.1.mixing.into"}
    with torch.no_grad():
        for parameter in added.values():
            parameter.add_(0.3)
    assert not torch.allclose(changed(IDS), model(IDS))
    changed(IDS).sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().max() > 0) for p in added.values())


class Shaped(Block):
    def __init__(self) -> None:
        super().__init__()
        self.gating, self.rows, self.columns = Gating(WIDTH, WIDTH), Square(False), Square(True)

    def prepared(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        result: torch.Tensor = x + self.gating(x) * self.rows(x) * self.columns(x)
        return result


def test_numbers_say_what_is_a_linear_map_whichever_way_round_its_matrix_is() -> None:
    trace = trace_model(made(Shaped))
    found = {path for path, unit in trace.others if isinstance(unit.sites[0], Projection) and ".0." in path}
    assert found == {"blocks.0.rows", "blocks.0.columns"}
    assert trace.fixed["blocks.0.gating"] == "Gating is no linear map and no embedding"


class Pooled(Net):
    """Behind the blocks: an attention whose kernel takes the weights, a head that is tied, and an idle map."""

    def __init__(self) -> None:
        super().__init__([Block(), Block()])
        self.pooling = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.head, self.idle = nn.Linear(WIDTH, 11, bias=False), nn.Linear(WIDTH, WIDTH)
        self.head.weight = self.embedding.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = super().forward(ids)
        scores: torch.Tensor = self.head(self.pooling(x, x, x)[0])
        return scores + nn.functional.linear(x, self.embedding.weight)


def test_outside_every_layer_too() -> None:
    trace = trace_model(Pooled())
    assert [path for path, _ in trace.others] == ["embedding", "head", "idle"]
    assert trace.fixed == {
        "pooling.out_proj": "MultiheadAttention reads its weight itself, and may do without its forward",
    }


@pytest.mark.parametrize("task", [None, "seq2seq-lm"])
def test_the_embedding_is_every_table_that_runs(task: str | None) -> None:
    """The tables of an encoder-decoder share a weight with one that no forward calls."""
    config = {"model_type": "bart", "vocab_size": 61, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
    model = build(Base(config={**config, **heads}, task=task))
    others, fixed = singles(model, (), observe(model), lambda path: False)
    found = [path for path, unit in others if unit.sites[0].name == "embedding"]
    body = "model." if task else ""
    tables = [f"{body}encoder.embed_tokens", f"{body}decoder.embed_tokens"]
    assert found == tables
    why = f"its forward is never called, that of {' and '.join(tables)} is, with its weight"
    assert fixed == {f"{body}shared": why}


class Scaled(nn.Embedding):
    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        rows = super().forward(ids + 1)
        return 3 * rows


class Placed(nn.Embedding):
    """Rows for positions, whatever the ids are."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.weight[: ids.shape[1]].expand(*ids.shape, WIDTH)


class Placing(Net):
    def __init__(self) -> None:
        super().__init__([Block()])
        self.embedding, self.places = Scaled(11, WIDTH), Placed(11, WIDTH)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = super().forward(ids) + self.places(ids)
        return result


def test_what_is_added_to_a_table_is_scaled_and_looked_up_as_its_rows_are() -> None:
    entry = {"method": "lora", "modules": "embedding", "rank": 2, "alpha": 3}
    torch.manual_seed(0)
    model = Placing()
    changed: Any = attached(copy.deepcopy(model), entry)
    with torch.no_grad():
        lora = changed.embedding.embedding_lora
        lora.A.normal_()
        model.embedding.weight += 1.5 * lora.A @ lora.B.T
        torch.testing.assert_close(changed(IDS), model(IDS))


def test_rows_that_no_ids_choose_are_no_embedding() -> None:
    with pytest.raises(PeftcError, match=r"'places' is no place to attach: Placed is no linear map and no embedding"):
        attached(Placing(), {"method": "lora", "modules": "places"})


class Told(Block):
    """A block that adds a table's rows, which the table scales itself."""

    def __init__(self) -> None:
        super().__init__()
        self.table = Scaled(5, WIDTH)

    def prepared(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        result: torch.Tensor = x + self.table(torch.zeros(x.shape[:2], dtype=torch.long, device=x.device))
        return result


def test_tables_that_are_built_alike_share_one_trace() -> None:
    found = [unit for path, unit in trace_model(Net([Told() for _ in range(3)])).others if path.endswith("table")]
    assert len(found) == 3 and all(unit is found[0] for unit in found)
