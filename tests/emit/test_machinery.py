"""What every artifact does: loading, freezing, saving, switching off; on programs written by hand."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from peftc.runtime import load
from peftc.runtime.namespace import module_of
from tests.emit.bases import bert, gpt2, ids, llama
from tests.emit.compiled import ALL, answer, compiled, folder, perturb, same, state, trains
from tests.emit.programs import Written


@ALL
def test_from_base_depends_on_the_seed_of_the_spec_alone(
    program: Callable[[], Written], bases: dict[str, Path]
) -> None:
    written = program()
    torch.manual_seed(1)
    one = compiled(written).from_base(bases[program.__name__])
    torch.manual_seed(2)
    before = torch.get_rng_state()
    other = compiled(written).from_base(str(bases[program.__name__]))
    assert torch.equal(before, torch.get_rng_state())
    assert same(state(one), state(other))
    assert trains(one) == set(written.program.trained)
    base = load_file(bases[program.__name__] / "model.safetensors")
    assert all(torch.equal(one.state_dict()[name], tensor) for name, tensor in base.items())


@ALL
def test_gradients_reach_what_trains_and_nothing_else(program: Callable[[], Written], bases: dict[str, Path]) -> None:
    model = compiled(program()).from_base(bases[program.__name__])
    perturb(model)
    model.train()(ids()).logits.square().sum().backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == trains(model)


@ALL
def test_checkpointing_before_and_after(program: Callable[[], Written], bases: dict[str, Path]) -> None:
    model = compiled(program()).from_base(bases[program.__name__])
    perturb(model)
    runs: list[str] = []
    last = sorted(path for path in model.added if path.count(".") > 1)[-1]
    model.get_submodule(last).register_forward_pre_hook(lambda *_: runs.append(last))
    plain = gradients(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert close(plain, gradients(model)) and len(runs) == 3
    model.gradient_checkpointing_disable()
    assert close(plain, gradients(model)) and len(runs) == 4


def gradients(model: Any) -> dict[str, torch.Tensor]:
    model.zero_grad()
    torch.manual_seed(0)
    model.train()(ids(), use_cache=False).logits.square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.allclose(t, other[n], atol=1e-6) for n, t in one.items())


@ALL
def test_deepcopy_and_state_dict(program: Callable[[], Written], bases: dict[str, Path]) -> None:
    model = compiled(program()).from_base(bases[program.__name__])
    perturb(model)
    twin = copy.deepcopy(model)
    assert torch.equal(answer(twin), answer(model)) and trains(twin) == trains(model)
    with torch.no_grad():
        for p in twin.parameters():
            p.mul_(1.5)
    assert not torch.equal(answer(twin), answer(model))
    twin.load_state_dict(model.state_dict())
    assert torch.equal(answer(twin), answer(model))


@ALL
def test_disabled_is_the_base(program: Callable[[], Written], bases: dict[str, Path]) -> None:
    """Additions and the base's own vectors that train are switched off; a head is not."""
    written = program()
    model = compiled(written).from_base(bases[program.__name__])
    base = type(written.program.plan.trace.model).from_pretrained(bases[program.__name__])  # type: ignore[attr-defined]
    expected, moving = answer(base), model.added_names() | model.in_place().keys()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name in moving:
                p.add_(0.1)
    on, values = answer(model), state(model)
    with pytest.raises(KeyError), model.disable_adapter():
        assert torch.equal(answer(model), expected)
        with copy.deepcopy(model).disable_adapter():
            assert torch.equal(answer(model), expected)
        raise KeyError
    assert torch.equal(answer(model), on) and not torch.equal(on, expected)
    assert same(state(model), values)


def test_disabled_says_what_it_leaves_as_trained(bases: dict[str, Path], tmp_path: Path) -> None:
    """A model that was saved whole has the trained values alone; of a matrix that trains no second copy is kept."""
    model = compiled(gpt2()).from_base(bases["gpt2"])
    perturb(model)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    on = answer(again)
    left = r"only from_base and peftc\.attach keep the base's values, of vectors in memory\n  trained: {}"
    with pytest.warns(UserWarning, match=left.format(r"transformer\.ln_f\.weight")), again.disable_adapter():
        assert not torch.equal(answer(again), on)


FRESH = """
import sys, torch
sys.modules["peftc"] = None
from transformers import {auto}
torch.manual_seed({seed})
model, info = {auto}.from_pretrained({folder!r}, trust_remote_code=True, output_loading_info=True, dtype={dtype})
assert not info["missing_keys"] and not info["unexpected_keys"], info
ids = torch.randint(3, 40, (2, 7), generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    logits = model(ids).logits
trains = sorted(n for n, p in model.named_parameters() if p.requires_grad)
found = {{"state": model.state_dict(), "logits": logits, "trains": trains, "class": type(model).__module__}}
torch.save(found, {out!r})
"""


@ALL
def test_a_saved_model_in_a_fresh_interpreter(
    program: Callable[[], Written], bases: dict[str, Path], tmp_path: Path
) -> None:
    written = program()
    model = compiled(written).from_base(bases[program.__name__])
    perturb(model)
    model.save_pretrained(tmp_path / "whole")
    out = str(tmp_path / "out.pt")
    code = FRESH.format(auto=written.autos[0], seed=5, folder=str(tmp_path / "whole"), out=out, dtype="None")
    subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=tmp_path, env={**os.environ, "HF_HOME": str(tmp_path / "hf")}
    )
    found = torch.load(out, weights_only=True)  # house: ok, written above
    assert same(found["state"], state(model))
    assert torch.equal(found["logits"], answer(model)) and found["trains"] == sorted(trains(model))
    assert found["class"].startswith("transformers_modules")


@ALL
def test_additions_keep_their_dtype_beside_a_bfloat16_base(
    program: Callable[[], Written], bases: dict[str, Path], tmp_path: Path
) -> None:
    model = compiled(program()).from_base(bases[program.__name__], dtype=torch.bfloat16)
    added = model.added_names()
    assert {p.dtype for n, p in model.named_parameters() if n in added} == {torch.float32}
    assert {p.dtype for n, p in model.named_parameters() if n not in added} == {torch.bfloat16}
    perturb(model)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert same(state(model), state(again)) and torch.equal(answer(model), answer(again))
    assert model.to(torch.float64).dtype == torch.float64 and answer(model).dtype == torch.float64


def test_a_fresh_head_is_seeded_and_a_missing_base_tensor_is_an_error(bases: dict[str, Path], tmp_path: Path) -> None:
    weights = load_file(bases["bert"] / "model.safetensors")
    headless = {name: t for name, t in weights.items() if not name.startswith("classifier")}
    heads = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        heads.append(compiled(bert()).from_base(folder(bases["bert"], tmp_path / str(seed), headless)).classifier)
    assert torch.equal(heads[0].weight, heads[1].weight) and heads[0].weight.std() > 0 and not heads[0].bias.any()
    gone = "bert.encoder.layer.1.output.dense.weight"
    broken = folder(bases["bert"], tmp_path / "broken", {n: t for n, t in weights.items() if n != gone})
    with pytest.raises(ValueError, match=gone):
        compiled(bert()).from_base(broken)


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
def test_the_asked_attention_runs(bases: dict[str, Path], kernel: str) -> None:
    model = compiled(bert()).from_base(bases["bert"], attn_implementation=kernel)
    assert model.config._attn_implementation == kernel


def test_ties_and_resizing(bases: dict[str, Path]) -> None:
    model = compiled(gpt2()).from_base(bases["gpt2"])
    assert model.lm_head.weight is model.transformer.wte.weight
    before = trains(model)
    model.resize_token_embeddings(44)
    assert model.lm_head.weight is model.transformer.wte.weight and trains(model) == before
    assert model(ids()).logits.shape[-1] == 44


def test_wrapping_and_hooks(bases: dict[str, Path]) -> None:
    model = compiled(llama()).from_base(bases["llama"])
    assert {"LlamaDecoderLayer", "LlamaDecoderLayerGated"} <= set(model._no_split_modules)
    found = model(ids(), output_hidden_states=True, output_attentions=True)
    assert len(found.hidden_states) == 4


def test_printed_counts(bases: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    model = compiled(llama()).from_base(bases["llama"])
    model.print_trainable_parameters()
    assert capsys.readouterr().out.startswith(f"trainable params: {2 * 40 + 5 * 40 + 1:,} || all params: ")


def test_another_source_is_refused() -> None:
    text = bert().text
    digest = text.split('"BertSelfAttention": "')[1][:64]
    with pytest.raises(ImportError, match=r"modeling_bert\.BertSelfAttention; recompile"):
        module_of("modeling_changed", text.replace(digest, "0" * 64))


def test_constructing_draws_nothing_but_the_base() -> None:
    written = bert()
    config = written.program.plan.trace.model.config
    torch.manual_seed(0)
    base = type(written.program.plan.trace.model)(config)
    after = torch.get_rng_state()
    torch.manual_seed(0)
    model = compiled(written)(config)
    assert torch.equal(after, torch.get_rng_state())
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in base.state_dict().items())
    assert trains(model) == set(written.program.trained)


def test_a_head_of_another_shape_starts_afresh(tmp_path: Path) -> None:
    """The base was tuned for a task with more labels; what it lacks comes from the spec's seed."""
    written = bert()
    config: Any = copy.deepcopy(written.program.plan.trace.model.config)
    config.num_labels = 5
    kind: Any = type(written.program.plan.trace.model)
    kind(config).save_pretrained(tmp_path)
    torch.manual_seed(1)
    with pytest.warns(UserWarning, match="its head has another shape, so it starts afresh"):
        one = compiled(written).from_base(tmp_path)
    torch.manual_seed(2)
    with pytest.warns(UserWarning, match="classifier.weight"):
        other = compiled(written).from_base(tmp_path)
    assert one.classifier.weight.shape[0] == 3
    assert same(state(one), state(other))


def test_a_saved_head_that_is_asked_for_in_another_shape_is_seeded(bases: dict[str, Path], tmp_path: Path) -> None:
    model = compiled(bert()).from_base(bases["bert"])
    perturb(model)
    model.save_pretrained(tmp_path)
    heads = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        again = type(model).from_pretrained(tmp_path, num_labels=5, ignore_mismatched_sizes=True)
        assert trains(again) == trains(model) and torch.equal(again.prefix_trunk.E, model.prefix_trunk.E)
        heads.append(again.classifier.weight)
    assert torch.equal(*heads) and heads[0].shape[0] == 5 and heads[0].std() > 0


def test_one_process_alone_writes_the_source(bases: dict[str, Path], tmp_path: Path) -> None:
    model = compiled(bert()).from_base(bases["bert"])
    model.save_pretrained(tmp_path / "other", is_main_process=False)
    model.save_pretrained(tmp_path / "first", True, model.state_dict())
    assert not list((tmp_path / "other").iterdir())
    assert {"config.json", "model.safetensors", "modeling_by_hand.py"} <= {
        f.name for f in (tmp_path / "first").iterdir()
    }


def test_a_class_that_something_puts_before_ours(bases: dict[str, Path], tmp_path: Path) -> None:
    """As FSDP does, on the model and on units: the source that is saved is ours; a unit is not switched off in part."""
    model = compiled(bert()).from_base(bases["bert"])
    kind, unit = type(model), model.bert.encoder.layer[1].attention.self
    model.__class__ = type(f"FSDP{kind.__name__}", (kind,), {"__module__": "torch.distributed"})
    with model.disable_adapter():
        pass
    model.save_pretrained(tmp_path)
    assert (tmp_path / "modeling_by_hand.py").read_text() == bert().text
    again: Any = load(tmp_path)
    assert same(state(again), state(model))
    unit.__class__ = type("FSDPBertSelfAttention", (type(unit),), {})
    with (
        pytest.raises(ValueError, match=r"changed classes\n  changed: bert\.encoder\.layer\.1\.attention\.self$"),
        model.disable_adapter(),
    ):
        pass
