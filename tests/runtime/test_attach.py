"""Attaching in memory equals loading the artifact; what cannot be attached is refused untouched."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from accelerate import cpu_offload  # type: ignore[import-untyped]
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import BertForSequenceClassification, BertModel

import peftc
from peftc.emit.artifact import Artifact
from peftc.errors import PeftcError
from peftc.methods.call import Cost
from peftc.report.budget import Budget
from peftc.runtime import attach
from tests.emit.bases import BERT, bert, gpt2, ids, llama, lora
from tests.emit.programs import Written, body, written
from tests.laws import spec
from tests.trace import nets

PROGRAMS = pytest.mark.parametrize("program", [bert, gpt2, llama], ids=lambda p: p.__name__)


def artifact(program: Written) -> Artifact:
    name = program.program.plan.spec.name
    return Artifact(name, {f"modeling_{name.replace('-', '_')}.py": program.text}, Budget(0, 0, Cost(0, 0), ()))


def fresh(program: Written) -> Any:
    base: Any = program.program.plan.trace.model
    torch.manual_seed(1)
    return type(base)(base.config).eval()


@PROGRAMS
def test_attached_is_loaded(program: Any, tmp_path: Path) -> None:
    made = program()
    model = fresh(made)
    model.save_pretrained(tmp_path)
    torch.manual_seed(9)
    before = torch.get_rng_state()
    tensors = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    assert attach(model, artifact(made)) is model
    assert torch.equal(before, torch.get_rng_state())
    assert all(model.state_dict()[name].data_ptr() == pointer for name, pointer in tensors.items())
    loaded = type(model).from_base(tmp_path)
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert {n for n, p in model.named_parameters() if p.requires_grad} == set(made.program.trained)
    assert not any(module.training for module in model.modules())
    assert torch.equal(model(ids()).logits, loaded(ids()).logits)
    assert "class Compiled" in inspect.getsource(inspect.getmodule(type(model)))  # type: ignore[arg-type]


def test_disabled_is_the_base_as_it_was_attached_to() -> None:
    base = fresh(gpt2())
    expected = base(ids()).logits
    model = attach(base, artifact(gpt2()))
    with torch.no_grad():
        model.transformer.ln_f.weight.mul_(2)
    with model.disable_adapter():
        assert torch.equal(model(ids()).logits, expected)
    assert not torch.equal(model(ids()).logits, expected)


def test_meta_stays_meta() -> None:
    made = bert()
    with torch.device("meta"):
        model = fresh(made)
    attach(model, artifact(made))
    assert all(p.is_meta for p in model.parameters())


@PROGRAMS
def test_attached_twice(program: Any) -> None:
    model = attach(fresh(program()), artifact(program()))
    with pytest.raises(PeftcError, match="attached already"):
        attach(model, artifact(program()))


def untouched(model: nn.Module, message: str, made: Written | None = None) -> None:
    before = {name: type(module) for name, module in model.named_modules()}
    with pytest.raises(PeftcError, match=message):
        attach(model, artifact(made or bert()))
    assert before == {name: type(module) for name, module in model.named_modules()}


def test_offloaded_by_accelerate() -> None:
    model = fresh(bert())
    cpu_offload(model, torch.device("cpu"))
    untouched(model, "accelerate has offloaded bert.embeddings.LayerNorm, .* and 27 more")


def test_a_model_that_the_peft_library_changed() -> None:
    wrapped = get_peft_model(fresh(bert()), LoraConfig(target_modules=["query"]))
    untouched(wrapped, "the peft library has changed")
    inner: Any = wrapped.base_model.model
    untouched(inner, "the peft library has changed")


def test_where_no_gradients_are_kept() -> None:
    model: Any = BertModel(BERT)
    with torch.no_grad():
        peftc.attach(model, spec([{"method": "lora", "rank": 2}]))
    assert model.encoder.layer[0].attention.self.query_lora.A.requires_grad


def test_another_class_or_depth() -> None:
    untouched(BertModel(BERT), "not compiled for transformers.models.bert.modeling_bert.BertModel")
    shallow = type(BERT)(**{**BERT.to_dict(), "num_hidden_layers": 2})
    untouched(BertForSequenceClassification(shallow), "layer.2.attention.self are not its units")


class Mixer(nn.Module):
    """A unit of no library."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mixed: torch.Tensor = self.inner(x)
        return mixed


class Stack(nn.Module):
    """A model of no library, whose constructor is its own."""

    def __init__(self, width: int, *, depth: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(Mixer(width) for _ in range(depth))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for part in self.parts:
            x = part(x)
        return x


def test_a_model_of_no_library() -> None:
    model = Stack(8, depth=2)
    mixer = body(Mixer, "Mixer", ["parts.0", "parts.1"], {"inner_lora": lora(8, 8, 2)})
    made = written(
        model, {"Mixer": (mixer, "def forward(self, x):\n    return added(self.inner(x), self.inner_lora(x))")}
    )
    x = torch.ones(2, 8)
    expected = model(x)
    attach(model, artifact(made))
    assert torch.equal(model(x), expected)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == set(made.program.trained)


NETS = Path(nets.__file__).read_text("utf-8")


def test_a_class_of_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no file, so no later import could find another text of it."""
    cell = ModuleType("cell")
    monkeypatch.setitem(sys.modules, "cell", cell)
    exec(compile(NETS, "<cell>", "exec"), vars(cell))
    attached = cell.attached(cell.made(cell.Block))
    assert sys.modules[type(attached).__module__].SOURCES == {}


def test_a_class_that_no_import_finds() -> None:
    class Inside(nets.Net):
        pass

    with pytest.raises(PeftcError, match=r"no import finds .*<locals>\.Inside.*\n.*top level"):
        nets.attached(Inside([nets.Block(), nets.Block()]).eval())


def test_a_module_that_no_import_finds() -> None:
    lost = ModuleType("lost")
    exec(NETS, vars(lost))
    with pytest.raises(PeftcError, match=r"no import finds: lost\n.*sys\.modules"):
        lost.attached(lost.made(lost.Block))
