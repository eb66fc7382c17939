"""Attentions in which each query reads the keys around it: a prefix in them is that of all keys under a mask."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from peftc.graph.sites import Attention, Windowed
from peftc.methods.prefix import Prefix
from peftc.trace.roles.attention import attention_sites
from tests.trace.nets import WIDTH
from tests.trace.seen import seen
from tests.trace.test_einsums import Written, prefixed


class Masked(Written):
    """Reads the keys before, at and behind each query, the others masked."""

    def mixed(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query, key, value = (states.transpose(1, 2) for states in (query, key, value))
        places = torch.arange(key.shape[2], device=key.device)
        far = (places[:, None] - places).abs() > 1
        scores = (query @ key.transpose(-1, -2)).masked_fill(far, -1e9)
        return (torch.softmax(scores, -1) @ value).transpose(1, 2)


class Banded(Written):
    """The same in three scores for each query; of the first and the last one, two."""

    def mixed(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        around, there = self.around(key), self.around(torch.ones_like(key))[..., 0, :] > 0
        scores = self.changed(torch.einsum("bqhd,bqhdk->bqhk", query, around))
        weights = nn.functional.dropout(torch.softmax(scores.masked_fill(~there, -1e9), -1), 0.1, self.training)
        return torch.einsum("bqhk,bqhdk->bqhd", weights, self.around(value))

    def changed(self, scores: Tensor) -> Tensor:
        return scores

    def around(self, states: Tensor) -> Tensor:
        return nn.functional.pad(states, (0, 0, 0, 0, 1, 1)).unfold(1, 3, 1)


class Uneven(Banded):
    """Scores count the more, the later their key is."""

    def changed(self, scores: Tensor) -> Tensor:
        return scores * torch.arange(1, 4, device=scores.device)


class Summed(Banded):
    """Keys and values are the sums of those before them."""

    def around(self, states: Tensor) -> Tensor:
        return super().around(states).cumsum(-1)


def found(kind: type[nn.Module]) -> Attention:
    (site,) = (site for site in attention_sites(seen(kind(), WIDTH)) if isinstance(site, Attention))
    return site


def test_a_prefix_is_that_of_masked_keys() -> None:
    assert isinstance(found(Banded).written, Windowed), found(Banded).written
    torch.testing.assert_close(prefixed(Banded), prefixed(Masked))


def test_a_gate_scales_learnt_keys_and_values() -> None:
    torch.testing.assert_close(prefixed(Banded, gate="sequence"), prefixed(Masked, gate="sequence"))


@pytest.mark.parametrize("kind", [Uneven, Summed])
def test_what_makes_no_products_with_single_keys_is_refused(kind: type[nn.Module]) -> None:
    assert "are not (batch, heads" in (Prefix().refusal(found(kind)) or "")
