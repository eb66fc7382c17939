"""What transformers is asked for beside the logits, it takes from calls: those modules stay calls, or are units."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    PreTrainedConfig,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
    XGLMConfig,
    XGLMForCausalLM,
)
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils.output_capturing import capture_outputs

import peftc
from peftc.trace.record.taken import taken
from tests.laws import spec
from tests.trace.nets import IDS, WIDTH, Attending, Block, Net, made

METHODS: list[dict[str, Any]] = [
    {"method": "lora", "at": ["q", "v"], "rank": 2},
    {"method": "adapter", "variant": "houlsby", "bottleneck": 2},
]


def batch_and_heads_in_one_axis() -> PreTrainedModel:
    return XGLMForCausalLM(XGLMConfig(vocab_size=11, d_model=16, ffn_dim=12, num_layers=1, attention_heads=2))


def attention_inside_its_sublayer() -> PreTrainedModel:
    sizes: dict[str, Any] = {"d_model": 16, "d_kv": 4, "d_ff": 12, "num_heads": 2, "num_layers": 1}
    return T5ForConditionalGeneration(T5Config(vocab_size=11, **sizes))


@pytest.mark.parametrize("built", [batch_and_heads_in_one_axis, attention_inside_its_sublayer])
def test_the_weights_are_those_of_the_base(built: Any) -> None:
    base = built().eval()
    base.set_attn_implementation("eager")
    model = peftc.attach(copy.deepcopy(base), spec(METHODS))
    given = {"input_ids": IDS, **({"decoder_input_ids": IDS} if base.config.is_encoder_decoder else {})}
    wanted, found = (m(**given, output_attentions=True) for m in (base, model))
    names = [name for name in wanted if name.endswith("attentions") and wanted[name]]
    assert names
    torch.testing.assert_close([found[name] for name in names], [wanted[name] for name in names])


class Recorded(nn.Module):
    """A feed-forward with its residual, of which the hidden states are taken."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 12), nn.Linear(12, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = x + self.down(torch.relu(self.up(x)))
        return result


class Hybrid(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.inner = Attending(), Recorded()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.inner(x + self.attention(x))
        return result


class Recording(PreTrainedModel):
    """A model of layers in which what transformers records lies one step further inside."""

    config_class = PreTrainedConfig
    _can_record_outputs = {"hidden_states": Recorded}  # noqa: RUF012 - as transformers has it

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.net = Net([Hybrid(), Hybrid()])
        self.post_init()  # type: ignore[no-untyped-call]

    @capture_outputs(tie_last_hidden_states=False)  # type: ignore[untyped-decorator]
    def forward(self, input_ids: torch.Tensor, **kwargs: Any) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=self.net(input_ids))


def test_the_hidden_states_are_those_of_the_base() -> None:
    base: Any = Recording(PreTrainedConfig()).train(False)
    model = peftc.attach(copy.deepcopy(base), spec([{"method": "adapter"}]))
    wanted, found = (m(IDS, output_hidden_states=True).hidden_states for m in (base, model))
    assert len(wanted) == 3
    torch.testing.assert_close(found, wanted)


def test_only_models_of_transformers_say_so() -> None:
    assert taken(made(Block), "attentions") == []
    assert taken(attention_inside_its_sublayer(), "attentions")[:1] == ["encoder.block.0.layer.0"]
    assert taken(Recording(PreTrainedConfig()), "hidden_states") == ["net.blocks.0.inner", "net.blocks.1.inner"]
