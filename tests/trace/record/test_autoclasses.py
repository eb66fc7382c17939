"""The Auto classes that build a model: of transformers, or of a program that registered its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from transformers import AutoModel, BertModel
from transformers.models.auto import auto_factory

from peftc.trace.record.autoclasses import auto_classes, offers
from tests.renamed import Lantern, LanternConfig


@pytest.fixture
def registered() -> Iterator[None]:
    AutoModel.register(LanternConfig, Lantern)
    try:
        yield
    finally:
        mapping: auto_factory._LazyAutoMapping = AutoModel._model_mapping
        del mapping._extra_content[LanternConfig]


def test_a_model_of_ones_own_that_is_registered(registered: None) -> None:
    assert auto_classes(Lantern, "lantern") == ("AutoModel",)
    assert offers(AutoModel, "lantern")


def test_a_model_of_ones_own_that_is_not() -> None:
    """Nor where it is called as one of transformers is."""
    assert not auto_classes(Lantern, "lantern") and not offers(AutoModel, "lantern")
    assert auto_classes(BertModel, "bert") == ("AutoModel", "AutoModelForTextEncoding")
    assert not auto_classes(type("BertModel", (), {"__module__": "mine"}), "bert")
