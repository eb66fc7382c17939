"""Classes of units: what differs between towers, and between layers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from transformers.models.bart.modeling_bart import BartAttention

from peftc.emit.units import call_text, class_text, classes, placed
from tests.emit.bases import lora
from tests.emit.programs import body


@pytest.mark.parametrize(
    ("layers", "ranks", "expected"),
    [
        ((0, 1, 2), (2, 2, 2), "2"),
        ((3, 10, 4), (2, 8, 4), "2 if layer < 4 else 4 if layer < 10 else 8"),
        ((0, 1, 2, 3), (2, 4, 2, 8), "(2, 4, 2, 8)[layer]"),
        ((1, 2, 3, 5), (2, 4, 2, 8), "{1: 2, 2: 4, 3: 2, 5: 8}[layer]"),
    ],
)
def test_what_differs_by_layer(layers: tuple[int, ...], ranks: tuple[int, ...], expected: str) -> None:
    calls = {f"blocks.{i}": lora(8, 8, rank) for i, rank in zip(layers, ranks, strict=True)}
    assert f"rank={expected}, " in call_text(calls, (), 20)


def test_towers_that_number_alike_get_classes_of_their_own() -> None:
    paths = [f"model.{tower}.layers.{i}.self_attn" for tower in ("encoder", "decoder") for i in range(2)]
    same = body(BartAttention, "BartAttention", paths, {"lora": lora(8, 8, 2)})
    assert [unit.name for unit in classes([same])] == ["BartAttention"]
    other = body(BartAttention, "BartAttention", paths, {"lora": [lora(8, 8, rank) for rank in (2, 2, 3, 4)]})
    assert placed(classes([other])) == {
        "model.encoder.layers.{0-1}.self_attn": "BartAttentionEncoder",
        "model.decoder.layers.{0-1}.self_attn": "BartAttentionDecoder",
    }
    decoder = class_text(classes([other])[1], "base.BartAttention", ("def forward(self):", "    return None"), ())
    assert "rank=3 if layer < 1 else 4" in decoder and "Layers 0-1: written by hand." in decoder


def test_bodies_of_one_name_are_one_class() -> None:
    """A stage's number is no layer's; the layers are those that a spec counts."""
    stages = [f"stages.{stage}.blocks.{block}.attention" for stage in range(2) for block in range(2)]
    halves = [body(BartAttention, "BartAttention", stages[i::2], {"lora": lora(8, 8, 2)}) for i in range(2)]
    counted = [replace(half, layers={path: stages.index(path) for path in half.paths}) for half in halves]
    (unit,) = classes(counted)
    assert set(placed([unit])) == {"stages.{0-1}.blocks.0.attention", "stages.{0-1}.blocks.1.attention"}
    assert "Layers 0-3: written by hand." in class_text(unit, "base.BartAttention", (), ())


@pytest.mark.parametrize("pattern", ["stages.1.blocks.{}.attention", "limbs.limb_{}.attention"])
def test_where_no_number_tells_layers_apart_what_differs_makes_classes_of_its_own(pattern: str) -> None:
    paths = [pattern.format(i) for i in range(4)]
    calls = [lora(8, 8, rank) for rank in (2, 3, 3, 4)]
    found = classes([body(BartAttention, "BartAttention", paths, {"lora": calls})])
    assert [(unit.name, list(unit.paths)) for unit in found] == [
        ("BartAttention1", paths[:1]), ("BartAttention2", paths[1:3]), ("BartAttention3", paths[3:]),
    ]  # fmt: skip
    ranks = [class_text(unit, "base.BartAttention", (), ()).partition("rank=")[2][0] for unit in found]
    assert ranks == ["2", "3", "4"]
