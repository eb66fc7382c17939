"""What every method answers, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from peftc import modules
from peftc.graph.sites import Attention, Embedding, Projection, Site, Sublayer
from peftc.methods import METHODS
from peftc.methods.adapter import Adapter
from peftc.methods.additive import Additive
from peftc.methods.base import Method
from peftc.methods.gate import CLASSES, Gate
from peftc.methods.ia3 import IA3
from peftc.methods.lora import LoRA
from peftc.methods.prefix import Prefix
from tests.methods.plain import built

SITES: tuple[Site, ...] = (
    Projection("q", "query", "query", "query", 8, 12, bias=True),
    Projection("ffn_down", "down", "down", "down", 16, 8),
    Attention("attention", "attend", "key", "x", 8, 6, 4, mask="mask"),
    Sublayer("ffn", "down", "x", "sum", None, "x", 8, mask="mask"),
    Embedding("embedding", "words", "words", 9, 8),
)
CAUSAL = Attention("attention", "attend", "key", "x", 8, 6, 4, causal=True)
VARIED = (*(m() for m in METHODS), LoRA(rank=3, dropout=0.1, scaling="sqrt"), Adapter(bottleneck=3, variant="houlsby"))  # type: ignore[call-arg]


@pytest.mark.parametrize("method", [m for m in VARIED if isinstance(m, Additive)], ids=lambda m: m.method)
def test_the_cost_is_the_count_of_the_module(method: Additive) -> None:
    for site in (s for s in SITES if method.refusal(s) is None):
        assert method.cost(site).trained == sum(p.numel() for p in built(method.module(site)).parameters())


@pytest.mark.parametrize("method", VARIED, ids=lambda m: m.method)
def test_a_refusal_is_a_sentence_that_names_the_site(method: Method) -> None:
    refusals = {site.name: refusal for site in SITES if (refusal := method.refusal(site))}
    assert all(name in refusal for name, refusal in refusals.items())
    assert refusals


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__name__)
def test_a_method_says_what_it_is(method: type[Method]) -> None:
    assert method.summary and method.paper.startswith("arXiv:")
    schema = method.model_json_schema()["properties"]
    own = set(schema) - {"method"}
    assert all("description" in schema[name] for name in own)


@pytest.mark.parametrize("kind", CLASSES)
def test_the_cost_of_a_gate_is_the_count_of_its_module(kind: str) -> None:
    gate = Gate.model_validate(kind)
    assert gate.cost(8, 3).trained == sum(p.numel() for p in built(gate.call(8, 3)).parameters())


def test_a_trunk_costs_what_its_module_has() -> None:
    shared = Prefix(length=3, reparametrize={"hidden": 5}).shared([SITES[2], CAUSAL])
    assert shared is not None and shared.cost.stored == 0
    assert shared.cost.trained == sum(p.numel() for p in built(shared.call).parameters())


@pytest.mark.parametrize("kind", ["sequence", "masked", "central"])
def test_a_gate_that_averages_is_refused_where_it_would_see_the_future(kind: str) -> None:
    gate = Gate.model_validate(kind)
    causal = Sublayer("ffn", "down", "x", "sum", None, "x", 8, causal=True, mask="mask")
    assert "use a token or a constant gate" in str(Adapter().gate_refusal(gate, causal))
    assert "use a constant gate" in str(Prefix().gate_refusal(gate, CAUSAL))
    assert "token" not in str(Prefix().gate_refusal(gate, CAUSAL))


def test_a_prefix_has_no_token_gate() -> None:
    assert "use a constant gate" in str(Prefix().gate_refusal(Gate(kind="token"), SITES[2]))
    assert Prefix().gate_refusal(Gate(kind="constant"), CAUSAL) is None


def test_a_masked_gate_needs_a_mask() -> None:
    assert "mask" in str(LoRA().gate_refusal(Gate(kind="masked"), SITES[0]))
    assert Adapter().gate_refusal(Gate(kind="masked"), SITES[3]) is None


def test_scales() -> None:
    assert LoRA().scale == 2 and LoRA(scaling="sqrt").scale == 16 / 8**0.5
    gated = LoRA(gate={"kind": "token"})
    assert gated.scale == 1 and "alpha" in gated.notes()[0]
    assert not LoRA().notes()


def test_aliases_of_activations() -> None:
    assert Adapter(activation="swish").activation == "silu"
    assert Adapter(activation="gelu_new").activation == "gelu_tanh"


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "adapter", "bottleneck": 4, "reduction": 2},
        {"method": "adapter", "activation": "system"},
        {"method": "lora", "rank": 0},
        {"method": "lora", "alpha": float("inf")},
        {"method": "lora", "dropout": 1},
        {"method": "prefix", "length": 10**9},
        {"method": "prefix", "reparametrize": {"width": 3}},
        {"method": "ia3", "rank": 3},
    ],
    ids=str,
)
def test_bad_settings(settings: dict[str, Any]) -> None:
    own = next(m for m in METHODS if m.model_fields["method"].default == settings["method"])
    with pytest.raises(ValidationError):
        own.model_validate(settings)


def test_ia3_leaves_a_fused_input_alone() -> None:
    assert IA3().refusal(Projection("ffn_down", "fused", "fused", "part", 8, 4, rows=(0, 1, 2, 3)))


def test_every_class_that_is_called_exists() -> None:
    for name in ("PrefixSlice", "PrefixTrunk", "LoRAEmbedding", *CLASSES.values()):
        assert name in modules.__all__
