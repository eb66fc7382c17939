"""A config that makes no model is the spec's fault: a message, never a traceback."""

from __future__ import annotations

from typing import Any

import pytest

from peftc.errors import PeftcError
from peftc.spec.schema import Base
from peftc.trace import trace_base


@pytest.mark.parametrize(
    ("settings", "task", "said"),
    [
        ({"hidden_size": "big"}, None, "cannot be read: .*hidden_size.* expected int"),
        ({"hidden_act": "reluu"}, None, "cannot be built: KeyError 'reluu'"),
        ({"hidden_size": 33, "num_attention_heads": 4}, None, r"cannot be built: The hidden size \(33\)"),
        ({"num_hidden_layers": 10_000_000}, None, "num_hidden_layers of 10000000"),
        ({"model_type": "brt"}, None, "cannot be read: "),
        ({"model_type": "clip"}, "causal-lm", "cannot be built: "),
    ],
)
def test_a_config_that_makes_no_model(settings: dict[str, Any], task: Any, said: str) -> None:
    with pytest.raises(PeftcError, match=said) as caught:
        trace_base(Base(config={"model_type": "bert", **settings}, task=task))
    assert len(str(caught.value)) < 400


def test_a_base_without_layers_has_no_sites() -> None:
    config = {"model_type": "bert", "num_hidden_layers": 0, "hidden_size": 32, "num_attention_heads": 4}
    assert trace_base(Base(config=config)).layers == ()


def test_a_type_with_several_models_of_one_task() -> None:
    """Of which a config names one by its architectures; the first where it names none."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 20}
    trace = trace_base(Base(config={"model_type": "deit", **sizes}, task="image-classification"))
    assert type(trace.model).__name__ == "DeiTForImageClassification"
