"""A feed-forward whose output a unit inside its block adds to the stream: Zamba's, which its Mamba layer takes in.

Zamba2's is a module whose forward asks for the number of its layer, so it stays whole.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import peftc
from peftc.graph.sites import Sublayer
from peftc.trace import trace_model
from tests.laws import perturbed, spec
from tests.sweep import build
from tests.sweep.registry import registered

ADAPTER = {"method": "adapter", "bottleneck": 2}


def made(kind: str) -> Any:
    torch.manual_seed(0)
    return build.tiny(registered()[kind]).eval()


def test_what_is_handed_on_is_the_output() -> None:
    layer = trace_model(made("zamba")).layers[1]
    found = layer.find("ffn")
    assert found is not None and isinstance(found[2], Sublayer)
    assert (found[2].output, found[2].residual, found[2].sum) == ("linear", None, None)


@pytest.mark.parametrize("kind", ["zamba", "zamba2"])
def test_an_adapter_changes_what_is_added(kind: str) -> None:
    base, ids = made(kind), torch.tensor([[5, 6, 7], [8, 9, 5]])
    given: dict[str, torch.Tensor] = {}
    attached = peftc.attach(copy.deepcopy(base), spec([ADAPTER]))
    torch.testing.assert_close(attached(ids).logits, base(ids).logits)
    perturbed(attached)
    layer: Any = attached.model.layers[1]
    layer.linear.register_forward_hook(lambda module, args, output: given.update(output=output))
    key = "transformer_hidden_states"
    layer.mamba_decoder.register_forward_pre_hook(
        lambda m, args, named: given.update(added=named[key]), with_kwargs=True
    )
    assert not torch.allclose(attached(ids).logits, base(ids).logits)
    torch.testing.assert_close(given["added"], given["output"] + layer.ffn_adapter(given["output"]))
