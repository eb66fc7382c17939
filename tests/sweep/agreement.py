"""What a type does, against what is said of it: attention that is written out, and what looks ahead."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from transformers import PreTrainedModel

from peftc.graph.sites import Trace
from peftc.trace.record.attention_choice import attending_by, implementation
from peftc.trace.record.causal import causal_paths
from tests.sweep.inputs import Inputs, answer

ROUNDING = 1e-4


def otherwise_by_products(model: PreTrainedModel, base: PreTrainedModel, inputs: Inputs) -> str:
    """Why the answer is another by the attention that is written out, where the base's is the same; "" where it is."""
    plain, by_products = answer(base, inputs), _written_out(base, inputs)
    if by_products is None or not torch.allclose(plain, by_products, atol=ROUNDING):
        return ""
    found, own = _written_out(model, inputs), answer(model, inputs)
    if found is None:
        return "the base answers with eager attention, the attached model does not"
    off = float((found.float() - own.float()).abs().max()) if found.shape == own.shape else float("inf")
    return (
        "" if torch.allclose(found, own, atol=ROUNDING) else f"with eager attention it answers otherwise, by {off:.2g}"
    )


def _written_out(model: PreTrainedModel, inputs: Inputs) -> torch.Tensor | None:
    """What a model answers with eager attention in every part; None where it does not."""
    with ExitStack() as stack:
        for module in reversed(list(model.modules())):  # a config sets those inside it too: they come first
            if implementation(module):
                stack.enter_context(attending_by(module, "eager"))
        try:
            return answer(model, inputs)
        except (RuntimeError, TypeError, ValueError, AttributeError):
            return None


def ahead(model: PreTrainedModel, trace: Trace) -> str:
    """Which site would let a gate average over what comes later, though its layer never looks ahead in a run."""
    said = causal_paths(model)
    pairs = [(layer.path, site) for layer in trace.layers for _, unit in layer.units for site in unit.sites]
    wrong = (path for path, site in pairs if said.get(path) and not (site.causal or site.name.startswith("cross.")))
    found = next(wrong, None)
    return f"{found} never looks ahead, and its sites do not say so" if found else ""
