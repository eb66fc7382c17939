"""What is wrong with a base is said at the word of the spec that says it, with what to do."""

from __future__ import annotations

import pytest
import torch

from peftc.compiler import planned
from peftc.errors import PeftcError
from peftc.spec.load import loads
from peftc.spec.schema import TASKS
from peftc.trace.record.meta import values_as
from peftc.trace.record.model import auto_class
from peftc.trace.record.observed import _is_own


@pytest.mark.parametrize(
    ("base", "underlined", "said", "hint"),
    [
        ("{config: {model_type: brt}}", "brt", "no model type 'brt'", "did you mean 'bert'?"),
        ("{config: {model_type: quux9}}", "quux9", "no model type 'quux9'", "it is the model_type of"),
        (
            "{config: {model_type: bert, hiden_size: 8}}",
            "hiden_size",
            "has no 'hiden_size'",
            "did you mean hidden_size?",
        ),
        ("{config: {model_type: gpt2, n_ctx: 8}}", "n_ctx", "none of its code asks for it", "remove it"),
        ("{config: {model_type: bert, id2label: [a]}}", "config", "cannot be read: AttributeError", ""),
        (
            "{config: {model_type: bert, vocab_size: 9, hidden_size: 8, num_attention_heads: 2, num_hidden_layers: 1,"
            " num_labels: 3}, task: question-answering}",
            "config",
            "fails on example inputs: ValueError: too many values to unpack",
            "of up to 16 positions",
        ),
        (
            "{config: {model_type: llama, vocab_size: 9, hidden_size: 8, num_attention_heads: 2, num_hidden_layers: 1,"
            " intermediate_size: 8}, task: sequence-classification}",
            "config",
            "Cannot handle batch sizes > 1 if no padding token is defined",
            "batches of 2 and 3, of up to 16 positions: its config must allow that, by its sizes and its pad_token_id",
        ),
        ("{config: {model_type: bert, hidden_size: 1048576}}", "config", "a hidden_size of 1048576: more than", ""),
        ("{config: {model_type: bert, num_hidden_layers: 5000}}", "config", "a num_hidden_layers of 5000", ""),
        ("{config: {model_type: bert, hidden_size: 9}}", "config", "cannot be built: The hidden size (9)", ""),
        ("{config: {model_type: bert}, task: speech-seq2seq}", "speech-seq2seq", "bert has no model", "its tasks are"),
        ("{model: ./nowhere}", "./nowhere", "there is no folder './nowhere'", "a hub id reads owner/name"),
        ("{model: nobody/nothing}", "nobody/nothing", "the base's config cannot be read", "a local folder"),
    ],
)
def test_a_wrong_base(base: str, underlined: str, said: str, hint: str) -> None:
    with pytest.raises(PeftcError) as caught:
        planned(loads(f"name: x\nbase: {base}\nmethods: []\n"))
    (problem,) = caught.value.problems
    place = problem.place
    assert place is not None and place.text[place.column - 1 :][: place.width] == underlined
    assert said in problem.message and hint in (problem.hint or "") and len(str(problem)) < 700


def test_a_failure_of_our_own_is_no_word_about_the_base(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is raised in a line of peftc while the base runs stays what it is."""

    def broken(*given: object) -> None:
        raise ValueError("broken")

    monkeypatch.setattr("peftc.trace.record.observed.record", broken)
    monkeypatch.setitem(broken.__globals__, "__name__", "peftc.broken")
    with pytest.raises(ValueError, match="broken"):
        planned(
            loads("name: x\nbase: {config: {model_type: bert, vocab_size: 9, num_hidden_layers: 1}}\nmethods: []\n")
        )


def test_an_index_that_fails_is_the_models_whoever_reads_the_tensor() -> None:
    """While a model is recorded, peftc's own function reads rows of tensors for it."""
    with values_as(0), pytest.raises(IndexError) as caught:
        torch.zeros(2, 2, device="meta")[:, :, 0]
    assert str(caught.traceback[-1].path).endswith("meta.py") and not _is_own(caught.value)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_a_class(task: str) -> None:
    assert auto_class(task).__name__ == f"AutoModelFor{TASKS[task]}"
