"""What a model is asked to return besides: the same numbers and shapes as the base, but for a prefix's own columns."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.around.subjects import LENGTH, Subject, alike, subjects

ASKED = {"output_attentions": True, "output_hidden_states": True}
PADDED = pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])


def recorded(found: Any) -> dict[str, tuple[torch.Tensor, ...]]:
    """Every record of a forward: hidden states, attentions, cross-attentions."""
    return {key: value for key, value in found.items() if key.endswith(("hidden_states", "attentions"))}


@subjects()
@PADDED
def test_without_effect_as_the_base(subject: Subject, padded: bool) -> None:
    given = subject.given(padded)
    expected, found = (recorded(m(**given, **ASKED)) for m in (subject.base("eager"), subject.neutral("eager")))
    assert found.keys() == expected.keys() and all(expected.values())
    alike(found, expected)


@subjects()
@PADDED
def test_a_prefix_adds_columns_to_the_attentions(subject: Subject, padded: bool) -> None:
    """(batch, heads, queries, LENGTH + keys): the prefix's columns come first, and each row still sums to one."""
    given, model = subject.given(padded), subject.moved("eager")
    expected, found = recorded(subject.base("eager")(**given, **ASKED)), recorded(model(**given, **ASKED))
    assert found.keys() == expected.keys()
    for key in found:
        longer = LENGTH if key in PREFIXED else 0
        assert [shape(t, longer) for t in expected[key]] == [shape(t, 0) for t in found[key]]
        assert not any(torch.equal(*pair) for pair in zip(found[key][1:], expected[key][1:], strict=True))
    for weights in (t[0] for key in PREFIXED & found.keys() for t in found[key]):  # the first example has no padding
        assert weights[..., :LENGTH].gt(0).all()
        alike(weights.sum(-1), torch.ones_like(weights.sum(-1)))


PREFIXED = {"attentions", "encoder_attentions", "decoder_attentions"}


def shape(tensor: torch.Tensor, longer: int) -> tuple[int, ...]:
    return (*tensor.shape[:-1], tensor.shape[-1] + longer)


@subjects()
def test_asking_changes_no_logit(subject: Subject) -> None:
    model, given = subject.moved("eager"), subject.given(padded=True)
    asked = model(**given, **ASKED)
    alike(asked.logits, model(**given).logits)
    alike(model(**given, **ASKED, return_dict=False)[0], asked.logits)
