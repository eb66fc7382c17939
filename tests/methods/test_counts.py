"""Closed formulas against the published and measured counts, over sites built by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from peftc.graph.sites import Attention, Parameter, Projection, Site, Sublayer
from peftc.methods.adapter import Adapter
from peftc.methods.additive import Additive
from peftc.methods.bitfit import BitFit
from peftc.methods.call import Cost
from peftc.methods.ia3 import IA3
from peftc.methods.lora import LoRA
from peftc.methods.norm import Norm
from peftc.methods.prefix import Prefix
from peftc.methods.selective import Selective

BASE = 109_482_240
G = {"gate": {"kind": "sequence"}}


def layer(d: int, f: int) -> dict[str, Site]:
    square = [Projection(name, name, name, name, d, d) for name in "qkv"]
    down = Projection("ffn_down", "down", "down", "down", f, d)
    attention = Attention("attention", "a", "k", "x", d, d, d)
    outputs = [Sublayer(name, name, "x", "sum", None, "x", d) for name in ("attention_output", "ffn")]
    sites: list[Site] = [*square, down, attention, *outputs]
    return {site.name: site for site in sites}


def total(methods: Sequence[Additive], d: int = 768, f: int = 3072, layers: int = 12, one_gate: bool = False) -> Cost:
    sites, costs = layer(d, f), []
    for method in methods:
        mine = [sites[name] for name in method.at or method.default_sites()]
        costs += [method.cost(site) for site in mine] * layers
        if shared := method.shared(mine * layers):
            costs.append(shared.cost)
        if method.gate:
            gated = mine[:1] if one_gate else mine
            costs += [method.gate.cost(method.gate_width(site), 1) for site in gated] * layers
    return Cost(sum(c.trained for c in costs), sum(c.stored for c in costs))


def trunk(length: int, hidden: int, **settings: object) -> Prefix:
    return Prefix.model_validate({"length": length, "reparametrize": {"hidden": hidden}, **settings})


AP = (trunk(10, 512, **G), Adapter(bottleneck=48, **G))
APL = (*AP, LoRA(**G))


@pytest.mark.parametrize(
    ("methods", "trained", "stored"),
    [
        ((trunk(10, 512),), 9_857_024, 184_320),
        ((trunk(30, 512),), 9_872_384, 552_960),
        ((LoRA(),), 294_912, 294_912),
        ((Adapter(),), 894_528, 894_528),
        ((Adapter(variant="houlsby", bottleneck=48),), 1_789_056, 1_789_056),
        ((Adapter(variant="parallel", bottleneck=384),), 7_091_712, 7_091_712),
        ((IA3(),), 55_296, 55_296),
        ((trunk(30, 800), Adapter(variant="parallel", reduction=2, scale=4)), 22_493_984, 552_960 + 7_091_712),
        (AP, 10_770_008, 1_097_304),
        (APL, 11_083_376, 1_410_672),
    ],
)
def test_bert_base(methods: Sequence[Additive], trained: int, stored: int) -> None:
    assert total(methods) == Cost(trained, stored)


def test_unipelt_with_one_lora_gate_per_layer() -> None:
    found = total(APL, one_gate=True)
    assert found == Cost(11_074_148, 1_401_444)
    assert round(100 * found.stored / (BASE + found.stored), 2) == 1.26


def test_other_sizes() -> None:
    assert total((Prefix(length=20),), 1024, 4096, 24).trained == 983_040
    assert total((Prefix(length=5),), 1024, 4096, 24).trained == 245_760
    assert total((Prefix(length=10),), 1024, 4096, 24).trained == 491_520
    assert total((Adapter(variant="houlsby", bottleneck=64),), 1024, 4096, 24).trained == 6_343_680


def test_gates() -> None:
    counts = {"sequence": 769, "masked": 769, "token": 769, "constant": 1, "central": 3 * 769}
    for kind, count in counts.items():
        gate = LoRA(gate={"kind": kind}).gate
        assert gate is not None and gate.cost(768, 3) == Cost(count, count)


def bert_parameters() -> dict[str, Parameter]:
    """Weights and biases of BERT-base, and of a head."""
    linears = {f"{i}.{name}": (768, 768) for i in range(12) for name in ("q", "k", "v", "o")}
    linears |= {f"{i}.up": (3072, 768) for i in range(12)} | {f"{i}.down": (768, 3072) for i in range(12)}
    linears |= {"pooler": (768, 768), "classifier": (2, 768)}
    norms = ["embeddings.norm", *(f"{i}.{name}" for i in range(12) for name in ("norm", "last"))]
    found = [Parameter(f"{n}.weight", s, False, False, n == "classifier") for n, s in linears.items()]
    found += [Parameter(f"{n}.bias", s[:1], True, False, n == "classifier") for n, s in linears.items()]
    found += [Parameter(f"{n}.{p}", (768,), p == "bias", True, False) for n in norms for p in ("weight", "bias")]
    return {p.name: p for p in found}


@pytest.mark.parametrize(("method", "count"), [(BitFit(), 102_912), (Norm(), 38_400)])
def test_selective(method: Selective, count: int) -> None:
    parameters = bert_parameters()
    assert sum(parameters[name].size for name in method.trains(parameters)) == count
