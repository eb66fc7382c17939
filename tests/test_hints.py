"""Hints: what they say to write has a place."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from peftc.errors import PeftcError
from peftc.hints import glob_of, nearest_module, place_in
from peftc.methods.adapter import Adapter
from peftc.methods.bitfit import BitFit
from peftc.methods.lora import LoRA
from tests.laws import trace
from tests.trace.nets import WIDTH, Block, attached, made
from tests.zoo import named


def test_a_glob_names_what_lies_in_a_module_that_is_no_place_itself() -> None:
    bert = trace(named("bert"))
    assert glob_of("query", LoRA(), bert) == "*.query"
    assert glob_of("pooler", LoRA(), bert) == "*.pooler.*"
    assert glob_of("pooler", Adapter(), bert) is None
    assert glob_of("LayerNorm", BitFit(), bert) == "*.LayerNorm"


def test_a_name_is_led_to_all_modules_of_it_and_a_parameter_to_its_module() -> None:
    bert = trace(named("bert"))
    assert nearest_module("query", bert) == "did you mean '*.query'?"
    assert str(nearest_module("*.query.*", bert)).endswith("name its module, '*.query'")
    bare = replace(bert, parameters={"scale": next(iter(bert.parameters.values()))})
    assert (
        nearest_module("scale", bare)
        == "scale is a parameter of the model itself, and of no module that could be named"
    )


def test_a_method_is_sent_to_sites_of_its_own_alone() -> None:
    bert, llama = trace(named("bert")), trace(named("llama"))
    assert place_in(bert.layers[0], Adapter(), bert) == "name attention_output, ffn"
    assert place_in(llama.layers[0], LoRA(), llama) == "name q, k, v, o, ffn_gate, ffn_up, ffn_down"
    assert place_in(llama.layers[0], BitFit(), llama) == "bitfit has no place in it"


class Bare(Block):
    """Its query, key and value are rows of one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.all, self.out = nn.Parameter(torch.randn(3 * WIDTH, WIDTH)), nn.Linear(WIDTH, WIDTH)
        del self.attention

    def attention(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in (x @ self.all.T).chunk(3, -1))
        result: torch.Tensor = self.out(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return result


class Divided(Block):
    """Its softmax is an exponential and a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.key, self.value = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        del self.attention

    def attention(self, x: torch.Tensor) -> torch.Tensor:
        scores = (x @ self.key(x).transpose(1, 2)).exp()
        result: torch.Tensor = scores / scores.sum(-1, keepdim=True) @ self.value(x)
        return result


BARE = "parameters used without a module of their own, where nothing can stand"


@pytest.mark.parametrize(
    ("kind", "message", "hint"),
    [
        (Bare, "Bare has no site 'q'", f'its other linear maps go by modules: "*.out"; {BARE}: all'),
        (
            Divided,
            "no attention was found in Divided: it has no site 'q'",
            'its other linear maps go by modules: "*.key", "*.value"',
        ),
    ],
)
def test_what_stands_in_place_of_a_projection(kind: type[nn.Module], message: str, hint: str) -> None:
    with pytest.raises(PeftcError) as caught:
        attached(made(kind), {"method": "lora", "at": "q"})
    (problem,) = caught.value.problems
    assert (problem.message, problem.hint) == (message, f"its sites are ffn_up, ffn_down, ffn, embedding; {hint}")
