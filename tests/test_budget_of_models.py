"""The counts of the papers, on models of transformers at true size: formula, attached parameters and print agree."""

from __future__ import annotations

from functools import cache

import pytest

from peftc.emit.artifact import emit
from peftc.graph.sites import Trace
from peftc.plan import Plan, resolve
from peftc.report.budget import Budget, budget
from peftc.rewrite import rewrite
from peftc.runtime.attach import attach
from peftc.runtime.proof import Proof
from peftc.spec.load import loads
from peftc.spec.schema import Spec
from peftc.trace import trace_base
from peftc.trace.record.model import build
from tests.report.test_counts import APL
from tests.report.test_counts import BERT as COUNTS

BERT = "{config: {model_type: bert}}"
BERT_LARGE = (
    "{config: {model_type: bert, hidden_size: 1024, num_hidden_layers: 24, num_attention_heads: 16, "
    "intermediate_size: 4096}}"
)
CLASSIFIER = "{config: {model_type: bert, num_labels: 2}, task: sequence-classification}"
GPT2_MEDIUM = "{config: {model_type: gpt2, n_embd: 1024, n_layer: 24, n_head: 16}, task: causal-lm}"
T5_LARGE = (
    "{config: {model_type: t5, d_model: 1024, d_kv: 64, d_ff: 4096, num_layers: 24, num_heads: 16, vocab_size: 32128, "
    "decoder_start_token_id: 0}, task: seq2seq-lm}"
)
PUBLISHED = {"{method: adapter, bottleneck: 48}": 0.81, "{preset: unipelt-ap}": 0.99, APL: 1.26}


@cache
def traced(base: str) -> Trace:
    return trace_base(spec("{method: bitfit}", base).base)


def spec(methods: str, base: str, more: str = "") -> Spec:
    return loads(f"name: counted\nbase: {base}\nmethods: [{methods}]\n{more}")


def counted(methods: str, base: str, more: str = "") -> Budget:
    """The budget by formula, which is what the attached model has."""
    plan = resolve(spec(methods, base, more), traced(base))
    found = budget(plan)
    assert found.total.trained == attached(plan, found)
    return found


def attached(plan: Plan, found: Budget) -> int:
    """How many parameters require a gradient in a model, on the meta device, that the artifact was attached to."""
    program = rewrite(plan, plan.trace)
    model = attach(build(plan.spec.base), emit(program, found, Proof((), 0)))
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("methods", COUNTS)
def test_bert_base(methods: str) -> None:
    found = counted(methods, BERT)
    assert found.base_parameters == 109_482_240
    assert (found.total.trained, found.total.stored) == COUNTS[methods]


@pytest.mark.parametrize("methods", PUBLISHED)
def test_published_percentages_are_of_what_is_stored(methods: str) -> None:
    assert round(counted(methods, BERT).stored_percent_of_total(), 2) == PUBLISHED[methods]


def test_a_head_has_a_row_of_its_own_and_is_not_of_the_base() -> None:
    found = counted(APL, CLASSIFIER, "train: [head]")
    head = [row for row in found.rows if row.part == "head"]
    assert [(row.module, row.method, row.trained, row.stored) for row in head] == [("classifier", "train", 1538, 1538)]
    assert (found.head_parameters, found.base_parameters) == (1538, 109_482_240)
    assert found.total.trained == COUNTS[APL][0] + 1538
    assert found.additions.trained == COUNTS[APL][0]


def test_bert_large_houlsby() -> None:
    assert counted("{method: adapter, variant: houlsby, bottleneck: 64}", BERT_LARGE).total.trained == 6_343_680


@pytest.mark.parametrize(("length", "trained", "percent"), [(5, 245_760, 0.0692), (10, 491_520, 0.1383)])
def test_gpt2_medium_prefix(length: int, trained: int, percent: float) -> None:
    found = counted(f"{{method: prefix, length: {length}}}", GPT2_MEDIUM)
    assert found.total.trained == trained
    assert round(found.trained_percent_of_total(), 4) == percent


def test_t5_large_prefix_of_the_decoder() -> None:
    found = counted("{method: prefix, length: 20, towers: [decoder], at: [attention]}", T5_LARGE)
    assert found.total.trained == 983_040
    assert found.base_parameters + found.additions.trained == 738_651_136
    assert found.trained_percent_of_total() == 0.13308583065659835
