"""Models whose classes, modules and arguments no library knows keep every law: names play no part."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import peftc
from peftc.errors import PeftcError
from peftc.methods import METHODS
from tests import test_laws as laws
from tests.laws import Case, answer, perturbed, samples, spec, trace, word
from tests.renamed import Lantern, LanternConfig, River, RiverSizes
from tests.zoo import Tiny, drawn, fresh, inputs


@dataclass(frozen=True, eq=False)
class Renamed(Tiny):
    """A model that its own constructor makes."""

    make: Callable[[], Any] = lambda: River(RiverSizes())

    def config(self, **changes: Any) -> dict[str, Any]:
        return {"model_type": "bert"}  # a spec needs some base; attaching looks at the model alone

    def model(self, task: str | None = "usual", *, attention: str = "sdpa", seed: int = 0, **changes: Any) -> Any:
        return drawn(self.make, seed)


BOTH = (
    Renamed("lantern", {}, None, attentions=(None,), make=lambda: Lantern(LanternConfig(pad_token_id=0))),
    Renamed("river", {}, None, causal=True, attentions=(None,), make=lambda: River(RiverSizes())),
)
CASES = pytest.mark.parametrize("case", [Case(tiny, name) for tiny in BOTH for name in samples(tiny)], ids=str)
FEW = pytest.mark.parametrize("case", [Case(tiny, name) for tiny in BOTH for name in laws.SHORT[:-1]], ids=str)
LAWS = (
    laws.test_every_addition_has_an_effect,
    laws.test_formulas_are_counts,
    laws.test_disabled_is_the_base,
    laws.test_the_state_of_the_base_keeps_its_names,
    laws.test_a_deep_copy_is_a_model_of_its_own,
    laws.test_the_order_of_the_entries_is_no_matter,
)


def test_every_site_is_found() -> None:
    encoder, decoder = (set(trace(tiny).layers[0].site_names()) for tiny in BOTH)
    assert encoder == {"q", "k", "v", "o", "attention", "attention_output", "ffn_up", "ffn_down", "ffn"}
    assert decoder == encoder | {"ffn_gate"}
    assert [trace(tiny).towers() for tiny in BOTH] == [("encoder",), ("decoder",)]
    tried = {e["method"] for tiny in BOTH for name in samples(tiny) for e in samples(tiny)[name] if "method" in e}
    assert tried == {word(method) for method in METHODS}


@FEW
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__.removeprefix("test_"))
def test_laws(case: Case, law: Callable[[Case], None]) -> None:
    law(case)


@CASES
def test_what_trains(case: Case) -> None:
    laws.test_what_trains(case)


@CASES
def test_identity(case: Case) -> None:
    """Where every method claims it, and nowhere else."""
    if not case.identity:
        laws.test_no_identity_where_none_is_claimed(case)
        return
    for dtype in (torch.float32, torch.bfloat16):
        laws.test_identity_at_init(case, dtype)


@FEW
def test_adapter_files(case: Case, tmp_path: Path) -> None:
    laws.test_adapter_files(case, tmp_path)


@pytest.mark.parametrize("tiny", BOTH, ids=lambda tiny: tiny.name)
def test_public_attach(tiny: Renamed) -> None:
    """The whole way, its proof included."""
    base = fresh(tiny)
    model = perturbed(peftc.attach(copy.deepcopy(base), spec(samples(tiny)["everything"])))
    for padded in (False, True):
        given = inputs(base, padded, causal=tiny.causal)
        changed = answer(model, given)
        assert torch.isfinite(changed).all() and not torch.equal(changed, answer(base, given))


def test_padding_leaves_real_tokens_alone() -> None:
    """A prefix and a masked gate in the encoder: an example says the same alone and beside longer ones."""
    entries = [{"method": "prefix", "gate": "masked"}, {"method": "adapter", "gate": "masked"}, {"method": "lora"}]
    model = perturbed(peftc.attach(fresh(BOTH[0]), spec(entries)))
    given = inputs(model, True)
    together, real = answer(model, given), given["attention_mask"].bool()
    for row, mask in enumerate(real):
        alone = answer(model, {"input_ids": given["input_ids"][row : row + 1, mask]})
        torch.testing.assert_close(together[row : row + 1, mask], alone, atol=1e-5, rtol=1e-5)


def test_a_causal_unit_sees_no_future() -> None:
    model = perturbed(peftc.attach(fresh(BOTH[1]), spec(samples(BOTH[1])["everything"])))
    ids = inputs(model)["input_ids"]
    torch.testing.assert_close(
        answer(model, {"input_ids": ids[:, :4]}), answer(model, {"input_ids": ids})[:, :4], atol=1e-5, rtol=1e-5
    )
    with pytest.raises(PeftcError, match="future"):
        peftc.attach(fresh(BOTH[1]), spec([{"method": "lora", "gate": "sequence"}]))
