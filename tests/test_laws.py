"""Every method, on every architecture, alone and with others, keeps these laws."""

from __future__ import annotations

import copy
import io
import re
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch

import peftc
from peftc.methods import METHODS
from peftc.runtime import attach
from tests.laws import Case, additions, answer, emitted, move, perturbed, same, samples, spec, trace, trains, word
from tests.zoo import ZOO, fresh, inputs

SHORT = ("everything", "every identity", "by layer", "central")
THOROUGH = ("bert", "llama")


def cases(
    *thorough: str, short: tuple[str, ...] = SHORT, of: Callable[[Case], bool] = lambda _: True
) -> pytest.MarkDecorator:
    """Every sample of every architecture: all are quick for the thorough ones, a few for the others."""
    found = [case for tiny in ZOO for name in samples(tiny) if of(case := Case(tiny, name))]
    quick = [case.tiny.name in thorough or case.name in short for case in found]
    marked = [
        pytest.param(c, id=str(c), marks=[] if q else [pytest.mark.slow]) for c, q in zip(found, quick, strict=True)
    ]
    return pytest.mark.parametrize("case", marked)


def calls(case: Case, model: Any) -> list[dict[str, Any]]:
    return [inputs(model, padded, causal=case.tiny.causal) for padded in (False, True)]


def test_every_method_is_here() -> None:
    tried = {e["method"] for tiny in ZOO for name in samples(tiny) for e in samples(tiny)[name] if "method" in e}
    assert tried == {word(method) for method in METHODS}


@cases(*THOROUGH, of=lambda case: case.identity)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_identity_at_init(case: Case, dtype: torch.dtype) -> None:
    base = fresh(case.tiny).to(dtype)
    model = attach(copy.deepcopy(base), case.artifact())
    for attention in case.tiny.attentions:
        for both in (base, model) if attention else ():
            both.set_attn_implementation(attention)
        for given in calls(case, base):
            for training in (False, True):
                expected = answer(base.train(training), given)
                assert same(expected, answer(model.train(training), given)), (attention, len(given), training)


@cases(*THOROUGH, of=lambda case: not case.identity)
def test_no_identity_where_none_is_claimed(case: Case) -> None:
    """The claim is neither too small nor too large: a prefix takes softmax mass from the start."""
    base = fresh(case.tiny)
    model, given = attach(copy.deepcopy(base), case.artifact()), calls(case, base)[1]
    assert not same(answer(base, given), answer(model, given))


@cases()
def test_every_addition_has_an_effect(case: Case) -> None:
    model = perturbed(case.attached())
    given = calls(case, model)[1]
    with torch.no_grad():
        before = answer(model, given)
        for path in model.added:
            parameters = list(model.get_submodule(path).parameters())
            kept = [p.clone() for p in parameters]
            move(iter(parameters), by=0.5)
            assert not parameters or not torch.equal(answer(model, given), before), path
            for parameter, old in zip(parameters, kept, strict=True):
                parameter.copy_(old)
    assert torch.isfinite(before).all()


@cases(*THOROUGH)
def test_what_trains(case: Case) -> None:
    """Exactly what the plan names has a gradient, a step moves it, and nothing else."""
    model = perturbed(case.attached())
    trained = set(case.program().trained)
    assert trains(model) == trained
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for seed in range(3):  # at one point a narrow relu may be dead
        move(additions(model), by=0.3, seed=seed)
        for given in calls(case, model):
            answer(model.train(), given).square().sum().backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached == trained - unused(case)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved <= trained


def unused(case: Case) -> set[str]:
    """What trains but the first output does not read: a pooler, where there is no head."""
    return {name for name in case.program().trained if name.startswith("pooler.")}


@cases(*THOROUGH)
def test_formulas_are_counts(case: Case) -> None:
    model, program, cost = case.attached(), case.program(), case.artifact().budget
    parameters = dict(model.named_parameters())
    counted: Counter[tuple[str, str]] = Counter()
    for placement in program.plan.placements:
        part, price = model.get_submodule(f"{placement.path}.{placement.name}"), placement.method.cost(placement.site)
        assert price.trained == sum(p.numel() for p in part.parameters())
        counted[placement.method.method, "module"] += price.trained
    for gate in program.plan.gates:
        assert gate.cost.trained == sum(p.numel() for p in model.get_submodule(f"{gate.path}.{gate.name}").parameters())
    for shared in program.shared:
        assert shared.module.cost.trained == sum(p.numel() for p in model.get_submodule(shared.name).parameters())
    for row in cost.rows:
        if row.part == "gate":
            own = sum(p.numel() for p in model.get_submodule(row.module).parameters())
            rows = [other for other in cost.rows if (other.module, other.part) == (row.module, "gate")]
            assert own == sum(other.trained for other in rows)
    assert cost.total.trained == sum(parameters[name].numel() for name in program.trained)
    assert cost.additions.trained == sum(p.numel() for p in additions(model))
    base = sum(p.numel() for p in fresh(case.tiny).parameters())
    assert cost.base_parameters + cost.head_parameters == base
    said = io.StringIO()
    with redirect_stdout(said):
        model.print_trainable_parameters()
    total = base + cost.additions.trained
    assert re.findall(r"[\d,]+", said.getvalue())[:2] == [f"{cost.total.trained:,}", f"{total:,}"]


@cases()
def test_disabled_is_the_base(case: Case) -> None:
    base, model = fresh(case.tiny), perturbed(case.attached())
    for training in (False, True):
        for given in calls(case, base):
            on = answer(model.train(training), given)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                with model.disable_adapter():
                    assert same(answer(model, given), answer(base.train(training), given))
            assert same(answer(model, given), on)


@cases()
def test_the_state_of_the_base_keeps_its_names(case: Case) -> None:
    base, model = fresh(case.tiny).state_dict(), case.attached()
    added = {f"{path}.{name}" for path in model.added for name in model.get_submodule(path).state_dict()}
    state = model.state_dict()
    assert state.keys() == base.keys() | added and not base.keys() & added
    assert all(torch.equal(tensor, state[name]) for name, tensor in base.items())


@cases()
def test_a_deep_copy_is_a_model_of_its_own(case: Case) -> None:
    model = case.attached()
    given = calls(case, model)[1]
    before = answer(model, given)
    copied = copy.deepcopy(model)
    assert same(answer(copied, given), before)
    perturbed(copied)
    changed = answer(copied, given)
    assert same(answer(model, given), before)
    if model.added:
        assert not torch.equal(changed, before)


@cases()
def test_adapter_files(case: Case, tmp_path: Path) -> None:
    model, other = case.attached(), case.attached()
    parameters = dict(model.named_parameters())
    move(parameters[name] for name in case.program().trained)
    model.save_adapter(tmp_path)
    other.load_adapter(tmp_path)
    assert all(torch.equal(t, other.state_dict()[n]) for n, t in model.state_dict().items())
    for given in calls(case, model):
        assert same(answer(model, given), answer(other, given))


@cases()
def test_the_order_of_the_entries_is_no_matter(case: Case) -> None:
    turned = spec(case.entries[::-1], case.tiny)
    again = emitted(turned, trace(case.tiny))[1]
    name = f"{again.module}.py"
    assert again.files[name] == case.artifact().files[name]
    assert again.files["budget.json"] == case.artifact().files["budget.json"]


@cases(short=("everything",))
def test_attached_is_loaded(case: Case, tmp_path: Path) -> None:
    """Attaching in memory is the same as compiling, writing, and loading on the base's weights."""
    train = ["head"] if any(p.head for p in trace(case.tiny).parameters.values()) else []
    written = spec(case.entries, case.tiny, train=train, seed=5)
    base = fresh(case.tiny)
    base.save_pretrained(tmp_path / "base")
    folder = peftc.compile(written).write(tmp_path)
    model = peftc.attach(copy.deepcopy(base), written)
    loaded: Any = peftc.load(folder, base=tmp_path / "base")
    theirs = loaded.state_dict()
    assert model.state_dict().keys() == theirs.keys() and trains(model) == trains(loaded)
    assert all(same(tensor, theirs[name]) for name, tensor in model.state_dict().items())
    perturbed(model).save_adapter(tmp_path / "adapter")
    loaded.load_adapter(tmp_path / "adapter")
    for given in calls(case, base):
        assert same(answer(model, given), answer(loaded, given))
