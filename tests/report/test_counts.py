"""The counts of the papers, from the formulas alone: specs resolved on traces by hand."""

from __future__ import annotations

import pytest

from peftc.graph.sites import Trace
from peftc.plan import resolve
from peftc.report.budget import Budget, budget
from peftc.spec.load import loads
from tests.report.paper import bert, decoder

APL = "{preset: unipelt-apl}"
APL_CODE = "{preset: unipelt-apl, lora: {gate: {kind: sequence, scope: site}}}"
APLB_CODE = "{preset: unipelt-aplb, lora: {gate: {kind: sequence, scope: site}}}"
PREFIX = "{method: prefix, length: %d, reparametrize: {hidden: 512}}"
MAM = (
    "{method: prefix, length: 30, reparametrize: {hidden: 800}}, {method: adapter, variant: parallel, bottleneck: 384}"
)

BERT = {
    "{method: bitfit}": (102_912, 102_912),
    PREFIX % 10: (9_857_024, 184_320),
    PREFIX % 30: (9_872_384, 552_960),
    "{method: lora, rank: 8, at: [q, v]}": (294_912, 294_912),
    "{method: adapter, bottleneck: 48}": (894_528, 894_528),
    "{method: adapter, variant: houlsby, bottleneck: 48}": (1_789_056, 1_789_056),
    "{method: adapter, variant: parallel, bottleneck: 384}": (7_091_712, 7_091_712),
    "{method: ia3}": (55_296, 55_296),
    "{method: norm}": (38_400, 38_400),
    MAM: (22_493_984, 552_960 + 7_091_712),
    "{preset: unipelt-ap}": (10_770_008, 1_097_304),
    APL: (11_074_148, 1_401_444),
    APL_CODE: (11_083_376, 1_410_672),
    APLB_CODE: (11_186_288, 1_513_584),
}


def counted(methods: str, trace: Trace, more: str = "") -> Budget:
    text = f"name: counted\nbase: {{config: {{model_type: bert}}}}\nmethods: [{methods}]\n{more}"
    return budget(resolve(loads(text), trace))


@pytest.mark.parametrize("methods", BERT)
def test_bert_base(methods: str) -> None:
    total = counted(methods, bert()).total
    assert (total.trained, total.stored) == BERT[methods]


def test_the_base_is_the_papers() -> None:
    assert counted("{method: bitfit}", bert()).base_parameters == 109_482_240


@pytest.mark.parametrize(
    ("methods", "published"), [("{method: adapter, bottleneck: 48}", 0.81), ("{preset: unipelt-ap}", 0.99), (APL, 1.26)]
)
def test_published_percentages_are_of_what_is_stored(methods: str, published: float) -> None:
    assert round(counted(methods, bert()).stored_percent_of_total(), 2) == published


def test_bert_large_houlsby() -> None:
    found = counted("{method: adapter, variant: houlsby, bottleneck: 64}", bert(24, 1024, 4096))
    assert found.total.trained == 6_343_680


@pytest.mark.parametrize(("length", "trained", "percent"), [(5, 245_760, 0.0692), (10, 491_520, 0.1383)])
def test_gpt2_medium_prefix(length: int, trained: int, percent: float) -> None:
    found = counted(f"{{method: prefix, length: {length}}}", decoder(24, 1024, 354_823_168))
    assert found.total.trained == trained
    assert round(found.trained_percent_of_total(), 4) == percent


def test_t5_large_prefix_of_the_decoder() -> None:
    found = counted("{method: prefix, length: 20}", decoder(24, 1024, 738_651_136 - 983_040))
    assert found.total.trained == 983_040
    assert found.trained_percent_of_total() == 0.13308583065659835
