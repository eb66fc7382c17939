"""What is counted, once, and where it is shown."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from peftc.errors import PeftcError
from peftc.graph.sites import Parameter
from peftc.plan import resolve
from peftc.report.budget import Budget, budget
from peftc.report.render import as_json, budget_markdown, budget_record
from peftc.report.text import budget_text, plan_text
from peftc.spec.layers import ranges
from peftc.spec.load import load, loads
from peftc.spec.patterns import compress
from peftc.spec.written import recorded
from tests.report.paper import bert
from tests.report.test_counts import APL, PREFIX, counted

SPECS = Path(__file__).parents[2] / "specs"
KEYS = (
    "schema", "base_parameters", "added_parameters", "trained_parameters", "stored_parameters", "head_parameters",
    "trained_percent_of_base", "trained_percent_of_total", "stored_percent_of_total", "by_method", "rows",
)  # fmt: skip


def test_a_head_has_its_own_row_and_is_not_the_base() -> None:
    found = counted("{method: lora}", bert(labels=2), "train: [head]")
    head = [row for row in found.rows if row.part == "head"]
    assert [(row.module, row.layer, row.trained, row.stored) for row in head] == [("classifier", None, 1538, 1538)]
    assert (found.base_parameters, found.head_parameters) == (109_482_240, 1538)
    assert found.total.trained == 294_912 + 1538
    assert set(found.by_method) == {"lora"}


def test_a_trunk_trains_and_its_tables_are_stored() -> None:
    found = counted(PREFIX % 10, bert())
    assert [(row.trained, row.stored) for row in found.rows if row.part == "trunk"] == [(9_857_024, 0)]
    assert {(row.trained, row.stored) for row in found.rows if row.part == "module"} == {(0, 2 * 10 * 768)}


def test_the_rows_add_up() -> None:
    found = counted(APL, bert(labels=3), "train: [head]")
    rows = [row for row in found.rows if row.part != "head"]
    assert sum(cost.trained for cost in found.by_method.values()) == sum(row.trained for row in rows)
    assert found.additions.trained == 11_074_148
    assert {row.layer for row in found.rows if row.part == "gate"} == set(range(12))


def test_a_central_gate_counts_with_each_of_its_methods() -> None:
    gate = "gate: {kind: central, shared: mix}"
    found = counted(f"{{method: prefix, {gate}}}, {{method: lora, {gate}}}", bert())
    gates = [row for row in found.rows if row.part == "gate"]
    assert sum(row.trained for row in gates if row.method == "lora") == 12 * 769
    assert sum(row.trained for row in gates if row.method == "prefix") == 12 * 769


def test_what_is_selected_twice_counts_once() -> None:
    once = counted("{method: bitfit}", bert())
    assert counted("{method: bitfit}", bert(), "train: ['encoder.layer.0.output.dense']").total.trained == (
        once.total.trained + 768 * 3072
    )
    assert counted("{method: bitfit}, {method: norm}", bert()).total.trained == 102_912 + 38_400 - 25 * 768


def test_a_trained_part_of_the_base_is_stored_and_adds_nothing() -> None:
    found = counted("{method: lora}", bert(), "train: ['pooler.dense']")
    row = found.rows[-1]
    assert (row.method, row.part, row.module) == ("train", "module", "pooler.dense")
    assert (row.tower, row.layer) == ("encoder", None)
    assert found.total.stored - found.additions.stored == 768 * 769
    assert found.base_parameters == 109_482_240


def test_a_tied_parameter_counts_once() -> None:
    base = bert()
    tied = Parameter("tied.weight", (10, 7), False, False, False, ("tied.weight", "head.weight"))
    trace = replace(base, parameters={**base.parameters, "tied.weight": tied}, modules=(*base.modules, "tied", "head"))
    found = counted("{method: lora}", trace, "train: [tied]")
    assert found.base_parameters == 109_482_240 + 70
    assert found.total.trained == 294_912 + 70


@pytest.mark.parametrize("limit", ["trained: '<= 0.2%'", "trained: '< 294912'", "stored: '<= 294911'"])
def test_past_a_limit_is_an_error_with_its_place(limit: str) -> None:
    with pytest.raises(PeftcError) as caught:
        counted("{method: lora}", bert(), f"budget: {{{limit}}}")
    (problem,) = caught.value.problems
    assert problem.place is not None
    assert problem.place.line == 4
    assert "294,912" in problem.message


@pytest.mark.parametrize("limit", ["trained: '<= 294912'", "stored: '< 294913'", "trained: '<= 0.27%'"])
def test_within_a_limit(limit: str) -> None:
    assert counted("{method: lora}", bert(), f"budget: {{{limit}}}").total.trained == 294_912


def test_the_record_is_the_schema() -> None:
    found = counted(APL, bert(labels=2), "train: [head]")
    record = json.loads(json.dumps(budget_record(found)))
    assert tuple(record) == KEYS
    assert record["trained_percent_of_base"] == 100 * record["trained_parameters"] / record["base_parameters"]
    assert list(record["rows"][0]) == ["tower", "layer", "site", "module", "method", "part", "trained", "stored"]


def test_the_page_has_a_line_per_run_of_layers() -> None:
    page = budget_markdown("bert", counted(APL, bert()))
    assert "| lora | module | q | encoder 0-11 | 12,288 | 147,456 | 147,456 |" in page
    assert len(page.splitlines()) < 40


def test_the_terminal_shows_the_plan_unit_by_unit() -> None:
    text = "name: shown\nbase: {config: {model_type: bert}}\nmethods: [{preset: unipelt-apl}, {method: bitfit}]"
    plan = resolve(loads(text), bert())
    shown = plan_text(plan, budget(plan))
    assert "BertSelfAttention: encoder.layer.{0-11}.attention.self" in shown
    assert len(shown.splitlines()) < 40
    assert "encoder 0-11" in budget_text(budget(plan))


def test_no_percentage_of_nothing() -> None:
    empty = Budget(0, 0, counted("{method: lora}", bert()).additions, ())
    assert empty.trained_percent_of_base() == 0


@pytest.mark.parametrize("path", sorted(SPECS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_expanded_spec_is_a_spec_of_the_same_plan(path: Path) -> None:
    written = load(path)
    again = loads(as_json(recorded(written)))
    assert recorded(again) == recorded(written)
    assert (again.methods, again.base) == (written.methods, written.base)


def test_a_limit_in_thousands_is_written_as_a_spec_reads_it() -> None:
    written = loads("name: x\nbase: {model: m}\nmethods: []\nbudget: {trained: '< 1_000_000'}\n")
    assert loads(as_json(recorded(written))).budget == written.budget


def test_runs() -> None:
    assert ranges([3, 0, 1, 2, 7]) == "0-3, 7"
    assert compress(["a.0.b", "a.1.b", "a.3.b"]) == ("a.{0-1, 3}.b",)
    assert compress(["a.x", "b.x"]) == ("a.x", "b.x")
