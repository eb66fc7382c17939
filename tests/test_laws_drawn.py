"""The laws at sizes and for plans that were drawn at random."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from peftc.emit.artifact import Artifact
from peftc.errors import PeftcError
from peftc.graph.sites import Trace
from peftc.methods import METHODS
from peftc.methods.selective import Selective
from peftc.rewrite.program import Program
from peftc.runtime import attach
from peftc.trace import trace_model
from tests import laws
from tests.laws import Entry, additions, answer, emitted, entry, perturbed, same, spec, trains, word
from tests.zoo import ZOO, Tiny, fresh, inputs, named, sized

FEW = settings(
    max_examples=8, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)  # fmt: skip
SIZES: dict[str, Any] = {
    "lora": {"rank": st.integers(1, 9)},
    "adapter": {"bottleneck": st.integers(1, 9), "variant": st.sampled_from(["pfeiffer", "houlsby", "parallel"])},
    "prefix": {"length": st.integers(1, 6), "reparametrize": st.sampled_from([None, {"hidden": 5}, {"hidden": 8}])},
}


@st.composite
def tinies(draw: st.DrawFn) -> Tiny:
    groups = draw(st.integers(1, 3))
    return sized(
        draw(st.sampled_from(ZOO)), heads=groups * draw(st.integers(1, 3)), span=2 * draw(st.integers(2, 5)),
        groups=groups, depth=draw(st.integers(1, 4)), inner=draw(st.integers(3, 50)),
    )  # fmt: skip


def sizes(draw: st.DrawFn, method: str) -> Entry:
    drawn = {key: draw(strategy) for key, strategy in SIZES.get(method, {}).items()}
    return {key: value for key, value in drawn.items() if value is not None}


@st.composite
def everything(draw: st.DrawFn) -> list[Entry]:
    return [entry(method, **sizes(draw, word(method))) for method in METHODS]


@FEW
@given(tiny=tinies(), entries=everything())
def test_formulas_are_counts(tiny: Tiny, entries: list[Entry]) -> None:
    base = tiny.model()
    found = trace_model(base)
    methods = [m() for m in METHODS]  # type: ignore[call-arg]
    offers = {m.method for m in methods if not isinstance(m, Selective) or m.trains(found.parameters)}
    written = spec([e for e in entries if e["method"] in offers], tiny)
    program, artifact = emitted(written, found)
    before = sum(p.numel() for p in base.parameters())
    model: Any = attach(base, artifact)
    cost = artifact.budget
    assert cost.base_parameters + cost.head_parameters == before
    assert cost.total.trained == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert cost.additions.trained == sum(p.numel() for p in additions(model))
    assert cost.additions.stored == sum(stored(model, p.path, p.name) for p in program.plan.placements)
    assert trains(model) == set(program.trained)


def stored(model: Any, path: str, name: str) -> int:
    """The size of what must be kept to run an addition: its parameters, or the tables that it takes from a trunk."""
    module = model.get_submodule(f"{path}.{name}")
    own: int = sum(p.numel() for p in module.parameters())
    return own or sum(table.numel() for table in module())


@st.composite
def plans(draw: st.DrawFn, tiny: Tiny) -> list[Entry]:
    """One to four entries: any method, at any of its sites, on any layers, under any gate that it may have alone."""
    chosen = draw(st.lists(st.sampled_from([m for m in METHODS if laws.offered(m, tiny)]), min_size=1, max_size=4))
    return [_drawn(draw, method, tiny) for method in chosen]


def _drawn(draw: st.DrawFn, method: Any, tiny: Tiny) -> Entry:
    made = entry(method, **sizes(draw, word(method)), again=True)
    sites = laws.everywhere(method, tiny)
    if sites and method().default_sites():
        made["at"] = draw(st.lists(st.sampled_from(sites), min_size=1, max_size=3, unique=True))
    made["layers"] = draw(st.sampled_from(["all", "0", "1-", "last 1", "even"]))
    kinds = laws.gates(method, tiny)
    if kinds:
        kind, scope = draw(st.sampled_from([None, *kinds])), draw(st.sampled_from(["site", "site", "layer"]))
        made |= {"gate": {"kind": kind, "scope": scope}} if kind else {}
    return made


@pytest.mark.parametrize("tiny", [named("bert"), named("gpt2"), named("llama")], ids=lambda tiny: tiny.name)
@FEW
@given(data=st.data())
def test_random_plans(tiny: Tiny, data: st.DataObject) -> None:
    """A plan is refused with a reason, or keeps the laws."""
    entries = data.draw(plans(tiny))
    found = _emitted(entries, tiny, laws.trace(tiny))
    assume(found is not None)
    assert found is not None
    program, artifact = found
    base = fresh(tiny)
    model = attach(copy.deepcopy(base), artifact)
    given_ = [inputs(base, padded, causal=tiny.causal) for padded in (False, True)]
    if all(method.identity_at_init for method in program.plan.spec.methods):
        for one in given_:
            assert same(answer(base.train(), one), answer(model.train(), one))
    perturbed(model)
    for one in given_:
        answer(model.train(), one).square().sum().backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == set(program.trained)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert artifact.budget.total.trained == sum(p.numel() for p in model.parameters() if p.requires_grad)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what trains of the base stays as it is
        disabled = model.disable_adapter()
        with disabled:
            off = answer(model, given_[1])

    assert same(off, answer(base.train(), given_[1]))


def _emitted(entries: list[Entry], tiny: Tiny, found: Trace) -> tuple[Program, Artifact] | None:
    try:
        return emitted(spec(entries, tiny), found)
    except PeftcError as error:
        assert error.problems
        return None
