"""A good spec, changed at random, still ends in a plan or in complaints: nothing that is written is a traceback."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peftc.errors import PeftcError
from peftc.plan import resolve
from peftc.report.budget import budget
from peftc.report.render import as_json, plan_record
from peftc.report.text import budget_text, plan_text
from peftc.spec.load import loads
from tests.byhand import by_hand

SPECS = Path(__file__).parents[1] / "specs"
GOOD = """\
name: good
base: {model: some/base, task: sequence-classification, revision: main}
seed: 3
dtype: float32
methods:
  - {preset: unipelt-aplb, lora: {rank: 2, gate: {kind: sequence, scope: site}}, adapter: {bottleneck: 2}}
  - {method: prefix, length: 2, reparametrize: {hidden: 3}, layers: "2-", again: true,
     gate: {kind: central, shared: g}}
  - {method: lora, at: [q, k], rank: 2, alpha: 1.5, layers: "2, 3", gate: {kind: central, shared: g}, again: true}
  - {method: ia3, at: [k, v], layers: even, gate: constant}
  - {method: norm, layers: 1}
  - {method: adapter, variant: parallel, reduction: 4, scale: 4, layers: 0-1, again: true, gate: masked}
train: [head, "pooler*"]
budget: {trained: "<= 2000%", stored: < 100000}
"""
TEXTS = (GOOD, *(path.read_text("utf-8") for path in sorted(SPECS.glob("*.yaml"))))
TOKEN = re.compile(r"[A-Za-z_][\w.-]*|\d[\d.e%-]*|\s+|[^\w\s]")
WORDS = sorted({token for text in TEXTS for token in TOKEN.findall(text)})
ODD = st.sampled_from(
    ["-1", "0", "1e400", "99999999999999999999", "null", "~", "true", "[]", "{}", "''", "*", "**", "[",
     "!!python/name:os", "&a",
     "*a", "<<", "../x", "0-", "-0", "5-1", "all", "lora", "\t", "\x00", "\u2028", "\ufeff", "é", "％", "½", "٣",
     "😀", "\ud83d", "nan", ".inf", "__class__", "{x}", "%s", "a" * 300]
)  # fmt: skip
FRESH = ODD | st.sampled_from(WORDS) | st.text(max_size=4)


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """A good text after a few deletions, repetitions, replacements and swaps of tokens or of whole lines."""
    text = draw(st.sampled_from(TEXTS))
    parts = text.splitlines(keepends=True) if draw(st.booleans()) else TOKEN.findall(text)
    for _ in range(draw(st.integers(1, 4))):
        at, other = (draw(st.integers(0, len(parts) - 1)) for _ in range(2))
        kind = draw(st.sampled_from(["delete", "repeat", "replace", "swap", "insert"]))
        if kind == "swap":
            parts[at], parts[other] = parts[other], parts[at]
            continue
        changed = {"delete": [], "repeat": [parts[at]] * 2}.get(kind) or [draw(FRESH)]
        parts[at : at + (kind != "insert")] = [] if kind == "delete" else changed
        parts = parts or [""]
    return "".join(parts)


def judged(text: str) -> bool:
    """Whether it is a spec that fits a small base; anything but a plan or complaints goes through."""
    try:
        plan = resolve(loads(text), by_hand())
        cost = budget(plan)
    except PeftcError as error:
        assert error.problems and all(str(problem) for problem in error.problems)
        return False
    assert plan_text(plan, cost) and budget_text(cost) and as_json(plan_record(plan, cost))
    return True


def test_the_good_one_is_good() -> None:
    assert judged(GOOD)


@settings(max_examples=250, deadline=None)
@given(mutated())
def test_any_change_ends_in_a_plan_or_in_complaints(text: str) -> None:
    judged(text)


@pytest.mark.slow
@settings(max_examples=20_000, deadline=None)
@given(mutated())
def test_any_change_at_length(text: str) -> None:
    judged(text)
