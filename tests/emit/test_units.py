"""Classes of units: what differs between towers, and between layers."""

from __future__ import annotations

from transformers.models.bart.modeling_bart import BartAttention

from peftc.emit.units import class_text, classes, placed
from tests.emit.bases import lora
from tests.emit.programs import body


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
    assert "rank=(3, 4)[layer]" in decoder and "Layers 0-1: written by hand." in decoder
