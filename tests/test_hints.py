"""Hints: what they say to write has a place."""

from __future__ import annotations

from peftc.hints import glob_of, place_in
from peftc.methods.adapter import Adapter
from peftc.methods.bitfit import BitFit
from peftc.methods.lora import LoRA
from tests.laws import trace
from tests.zoo import named


def test_a_glob_names_what_lies_in_a_module_that_is_no_place_itself() -> None:
    bert = trace(named("bert"))
    assert glob_of("query", LoRA(), bert) == "*.query"
    assert glob_of("pooler", LoRA(), bert) == "*.pooler.*"
    assert glob_of("pooler", Adapter(), bert) is None
    assert glob_of("LayerNorm", BitFit(), bert) == "*.LayerNorm"


def test_a_method_is_sent_to_sites_of_its_own_alone() -> None:
    bert, llama = trace(named("bert")), trace(named("llama"))
    assert place_in(bert.layers[0], Adapter(), bert) == "name attention_output, ffn"
    assert place_in(llama.layers[0], LoRA(), llama) == "name q, k, v, o, ffn_gate, ffn_up, ffn_down"
    assert place_in(llama.layers[0], BitFit(), llama) == "bitfit has no place in it"
