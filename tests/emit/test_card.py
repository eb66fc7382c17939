"""The model card of an artifact."""

from __future__ import annotations

import pytest

from peftc.compiler import planned
from peftc.emit.card import card
from peftc.emit.module import Heading
from peftc.spec.load import loads
from peftc.trace.record.autoclasses import auto_classes

BART = (
    "{model_type: bart, vocab_size: 20, d_model: 8, encoder_layers: 1, decoder_layers: 1, encoder_attention_heads: 2,"
    " decoder_attention_heads: 2, encoder_ffn_dim: 8, decoder_ffn_dim: 8, max_position_embeddings: 20}"
)


@pytest.mark.parametrize(
    ("task", "auto"), [("seq2seq-lm", "Seq2SeqLM"), ("masked-lm", "MaskedLM"), ("pretraining", "PreTraining")]
)
def test_of_several_auto_classes_it_loads_by_that_of_the_task(task: str, auto: str) -> None:
    plan = planned(loads(f"name: x\nbase: {{config: {BART}, task: {task}}}\nmethods: []\n"))
    autos = auto_classes(type(plan.trace.model), "bart")
    assert len(autos) == 3
    text = card(plan, "modeling_x", autos, Heading((), 0, 0), (), "# Budget")
    assert f"model = AutoModelFor{auto}.from_pretrained" in text
