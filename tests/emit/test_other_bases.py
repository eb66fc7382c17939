"""Which bases and overrides make the compiled model, and which another one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import LlamaConfig

from tests.emit.bases import bert, gpt2, llama
from tests.emit.compiled import compiled, folder


def test_another_architecture_is_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    other = folder(bases["bert"], tmp_path / "other", load_file(bases["bert"] / "model.safetensors"))
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "hidden_act": "relu"}))
    with pytest.raises(ValueError, match="hidden_act is 'relu', not 'gelu'"):
        compiled(bert()).from_base(other)
    assert compiled(bert()).from_base(other, hidden_act="gelu").config.hidden_act == "gelu"


def test_a_type_that_has_the_same_tensors_is_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    """Norms of Gemma's have other forwards, and weights of the same names."""
    other = folder(bases["llama"], tmp_path / "other", load_file(bases["llama"] / "model.safetensors"))
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "model_type": "gemma"}))
    with pytest.raises(ValueError, match="model_type is 'gemma', not 'llama'"):
        compiled(llama()).from_base(other)
    for other_file in ({**config, "model_type": "seeing", "text_config": config}, {**config, "model_type": None}):
        (other / "config.json").write_text(json.dumps({key: value for key, value in other_file.items() if value}))
        assert isinstance(compiled(llama()).from_base(other).config, LlamaConfig)


def test_a_type_that_shares_its_classes_with_another_is_its_own(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A base of a type whose model class is another type's, as InternLM3's is Llama's."""
    other = folder(bases["llama"], tmp_path / "other", load_file(bases["llama"] / "model.safetensors"))
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "model_type": "like_llama"}))
    model = compiled(llama())
    monkeypatch.setitem(sys.modules[model.__module__].CONFIG, "model_type", "like_llama")
    assert isinstance(model.from_base(other).config, LlamaConfig)


def test_another_dropout_is_the_same_model(bases: dict[str, Path], tmp_path: Path) -> None:
    other = folder(bases["bert"], tmp_path / "other", load_file(bases["bert"] / "model.safetensors"))
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "hidden_dropout_prob": 0.5, "of_another_time": 1}))
    assert compiled(bert()).from_base(other).bert.encoder.layer[0].output.dropout.p == 0.5


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ({"num_hiden_layers": 3}, r"num_hiden_layers \(the nearest is num_hidden_layers\)"),
        ({"num_hidden_layers": 2}, "num_hidden_layers is 2, not 3"),
        ({"hidden_size": 32}, "hidden_size is 32, not 16"),
        ({"num_attention_heads": 4}, "num_attention_heads is 4, not 2"),
        ({"hidden_act": "relu", "layer_norm_eps": 0.5}, r"hidden_act is 'relu', not 'gelu', layer_norm_eps is 0\.5"),
    ],
)
def test_overrides_that_make_another_model(bases: dict[str, Path], override: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        compiled(bert()).from_base(bases["bert"], **override)


def test_an_override_by_the_common_name(bases: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="n_layer is 1, not 2"):
        compiled(gpt2()).from_base(bases["gpt2"], num_hidden_layers=1)


def test_overrides_that_make_no_other_model(bases: dict[str, Path]) -> None:
    changed = {"hidden_dropout_prob": 0.3, "classifier_dropout": 0.2, "use_cache": False, "return_dict": False}
    model = compiled(bert()).from_base(bases["bert"], **changed, id2label={0: "a", 1: "b", 2: "c"})
    assert {key: getattr(model.config, key) for key in changed} == changed
    assert model.config.id2label[2] == "c"
    assert model.dropout.p == 0.2 and model.bert.encoder.layer[0].output.dropout.p == 0.3
