"""What a model of no library keeps between calls: a list of keys and values that it hands back in a tuple."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    PreTrainedConfig,
    PreTrainedModel,
)

import peftc
from peftc.trace import trace_model
from tests.laws import spec
from tests.trace.nets import IDS, Attending, Block, Net, attached

Pair = tuple[torch.Tensor, torch.Tensor]


class Recalling(Attending):
    """A causal attention of one head that goes on from earlier keys and values."""

    def forward(self, x: torch.Tensor, past: Pair | None = None, use_cache: bool = False, **kwargs: Any) -> Any:
        q, k, v = self.query(x), self.key(x), self.value(x)
        if past is not None:
            k, v = torch.cat((past[0], k), 1), torch.cat((past[1], v), 1)
        seen = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool, device=x.device).tril(k.shape[1] - q.shape[1])
        weights = (q @ k.transpose(1, 2)).masked_fill(~seen, float("-inf")).softmax(-1)
        return self.out(weights @ v), (k, v) if use_cache else None


class Going(Block):
    attends = Recalling

    def forward(self, x: torch.Tensor, past: Pair | None = None, use_cache: bool = False, **kwargs: Any) -> Any:
        attended, kept = self.attention(x, past, use_cache)
        x = x + attended
        return x + self.down(torch.relu(self.up(x))), kept


class Remembering(Net):
    def forward(self, ids: torch.Tensor, past: list[Pair] | None = None, use_cache: bool = False) -> Any:
        x, kept = self.embedding(ids), []
        for i, block in enumerate(self.blocks):
            x, own = block(x, None if past is None else past[i], use_cache)
            kept.append(own)
        return (x, kept) if use_cache else x


def test_a_list_of_keys_and_values_is_a_cache() -> None:
    torch.manual_seed(0)
    model = Remembering([Going(), Going()]).eval()
    changed: Any = attached(model)
    first, kept = model(IDS, use_cache=True)
    own, same = changed(IDS, use_cache=True)
    torch.testing.assert_close((own, same), (first, kept))
    torch.testing.assert_close(changed(IDS[:, :1], kept, True), model(IDS[:, :1], kept, True))
    torch.testing.assert_close(changed(IDS, kept), model(IDS, kept))


class Passing(PreTrainedModel):
    """A model of transformers that hands what it keeps back in a tuple, under transformers' own name."""

    config_class = PreTrainedConfig

    def __init__(self) -> None:
        super().__init__(PreTrainedConfig())
        self.net = Remembering([Going(), Going()])

    def forward(self, input_ids: torch.Tensor, past_key_values: Any = None, use_cache: bool = False) -> Any:
        return self.net(input_ids, past_key_values, use_cache)


def test_a_model_of_transformers_may_hand_its_cache_back_in_a_tuple() -> None:
    torch.manual_seed(0)
    model: Any = Passing()
    model.eval()
    changed: Any = attached(model)
    _, kept = model(IDS, use_cache=True)
    torch.testing.assert_close(changed(IDS[:, :1], kept, True), model(IDS[:, :1], kept, True))


TINY = {
    "vocab_size": 12, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12,
    "is_decoder": True,
}  # fmt: skip


@pytest.mark.parametrize(
    ("model_type", "auto"), [("gpt2", AutoModelForQuestionAnswering), ("bert", AutoModelForMaskedLM)]
)
def test_a_head_that_only_its_config_tells_of_a_cache_runs_with_and_without_one(model_type: str, auto: Any) -> None:
    torch.manual_seed(0)
    model: Any = auto.from_config(AutoConfig.for_model(model_type, **TINY)).eval()
    changed: Any = peftc.attach(copy.deepcopy(model), spec([{"method": "lora", "at": ["q", "v"], "rank": 2}]))
    assert model.config.use_cache
    torch.testing.assert_close(changed(IDS)[0], model(IDS)[0])
    model.config.use_cache = changed.config.use_cache = False
    torch.testing.assert_close(changed(IDS)[0], model(IDS)[0])
    changed.gradient_checkpointing_enable()
    changed.train()(IDS)[0].sum().backward()
    assert all(p.grad is not None for p in changed.parameters() if p.requires_grad)


def test_tracing_leaves_what_a_config_says_of_its_cache() -> None:
    config = AutoConfig.for_model("gpt2", **TINY, use_cache=False)
    model = AutoModelForQuestionAnswering.from_config(config)
    trace_model(model)
    assert model.config.use_cache is False


CONVOLVED = {
    "vocab_size": 12, "hidden_size": 8, "num_hidden_layers": 2, "layer_types": ["hybrid_sliding", "hybrid"],
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4, "swa_num_attention_heads": 2,
    "swa_num_key_value_heads": 1, "swa_head_dim": 4, "d_rel": 4, "moe_intermediate_size": 8, "n_routed_experts": 2,
    "num_experts_per_tok": 1,
}  # fmt: skip


def test_one_token_may_be_the_first_of_a_cache_or_a_later_one() -> None:
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model("inkling2_text", **CONVOLVED)).eval()
    changed: Any = peftc.attach(copy.deepcopy(model), spec([{"method": "lora", "at": ["q"], "rank": 2}]))
    for length in (1, 2):
        first, own = (m(IDS[:, :length], use_cache=True) for m in (model, changed))
        torch.testing.assert_close(own.logits, first.logits)
        again, later = (m(IDS[:, :1], past_key_values=o.past_key_values) for m, o in ((model, first), (changed, own)))
        torch.testing.assert_close(later.logits, again.logits)
