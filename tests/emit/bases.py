"""Small bases and their hand-written programs."""

from __future__ import annotations

import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers.models.bert.modeling_bert import BertSelfAttention
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaMLP

from peftc.methods.call import ModuleCall
from tests.emit.programs import Written, body, written

BERT = BertConfig(
    hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=24, vocab_size=40,
    max_position_embeddings=32, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
)  # fmt: skip
GPT2 = GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=40, n_positions=32, bos_token_id=1, eos_token_id=2)
LLAMA = LlamaConfig(
    hidden_size=16, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, intermediate_size=24,
    vocab_size=40, max_position_embeddings=64,
)  # fmt: skip

BERT_FORWARD = """
def forward(self, hidden_states, attention_mask=None, past_key_values=None, **kwargs):
    shape = (*hidden_states.shape[:-1], -1, self.attention_head_size)
    query = added(self.query(hidden_states), self.query_lora(hidden_states))  # lora on q
    value = added(self.value(hidden_states), self.value_lora(hidden_states))  # lora on v
    query = query.view(shape).transpose(1, 2)
    key = self.key(hidden_states).view(shape).transpose(1, 2)
    value = value.view(shape).transpose(1, 2)
    key, value, attention_mask = with_prefix(query, key, value, attention_mask, self.prefix())  # prefix
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, base.eager_attention_forward)
    output, weights = attend(
        self, query, key, value, attention_mask,
        dropout=self.dropout.p if self.training else 0.0, scaling=self.scaling, **kwargs,
    )  # fmt: skip
    return output.reshape(*hidden_states.shape[:-1], -1).contiguous(), weights
"""
GPT2_FORWARD = """
def forward(self, hidden_states):
    inner = self.act(self.c_fc(hidden_states))
    return added(self.dropout(self.c_proj(inner)), self.adapter(hidden_states))  # parallel adapter
"""
LLAMA_FORWARD = """
def forward(self, x):
    up = added(self.up_proj(x), self.up_lora(x))  # lora on ffn_up
    return self.down_proj(self.act_fn(self.gate_proj(x)) * up)
"""


BERT.num_labels = 3


def lora(inputs: int, outputs: int, rank: int) -> ModuleCall:
    return ModuleCall("LoRA", (("inputs", inputs), ("outputs", outputs), ("rank", rank), ("scale", 2.0)))


def bert(model: nn.Module | None = None) -> Written:
    """LoRA of rank 2, 2, 3 on q and v; a prefix of 4 from a trunk of the model; the head trains."""
    paths = [f"bert.encoder.layer.{i}.attention.self" for i in range(3)]
    slices = [ModuleCall("PrefixSlice", (("trunk", "prefix_trunk"), ("index", i))) for i in range(3)]
    loras = [lora(16, 16, rank) for rank in (2, 2, 3)]
    attention = body(
        BertSelfAttention, "BertSelfAttention", paths, {"query_lora": loras, "value_lora": loras, "prefix": slices}
    )
    trunk = ModuleCall("PrefixTrunk", (("length", 4), ("width", 16), ("hidden", 8), ("rows", (16,) * 6)))
    return written(
        model or BertForSequenceClassification(BERT),
        {"BertSelfAttention": (attention, BERT_FORWARD)},
        ("AutoModelForSequenceClassification",),
        {"prefix_trunk": trunk},
        ("classifier.weight", "classifier.bias"),
    )


def gpt2() -> Written:
    """A parallel adapter in every feed-forward; one norm of the base trains."""
    paths = [f"transformer.h.{i}.mlp" for i in range(2)]
    adapter = ModuleCall("Adapter", (("width", 16), ("bottleneck", 4), ("scale", 4.0)))
    mlp = body(GPT2MLP, "GPT2MLP", paths, {"adapter": adapter})
    autos = ("AutoModelForCausalLM",)
    return written(
        GPT2LMHeadModel(GPT2),
        {"GPT2MLP": (mlp, GPT2_FORWARD)},
        autos,
        train=("transformer.ln_f.weight",),
        name="gpt-hand",
    )


def llama() -> Written:
    """LoRA on ffn_up of layers 1 and 2, of different ranks; a gate in the block of layer 2."""
    paths = [f"model.layers.{i}.mlp" for i in (1, 2)]
    mlp = body(LlamaMLP, "LlamaMLP", paths, {"up_lora": [lora(16, 24, 2), lora(16, 24, 5)]})
    block = body(LlamaDecoderLayer, "LlamaDecoderLayerGated", ["model.layers.2"], {"gate": ModuleCall("ConstantGate")})
    return written(
        LlamaForCausalLM(LLAMA),
        {"LlamaMLP": (mlp, LLAMA_FORWARD), "LlamaDecoderLayerGated": (block, LLAMA_BLOCK)},
        ("AutoModelForCausalLM",),
    )


LLAMA_BLOCK = """
def forward(self, hidden_states, attention_mask=None, position_ids=None, past_key_values=None, use_cache=False,
            position_embeddings=None, **kwargs):
    inner, _ = self.self_attn(
        hidden_states=self.input_layernorm(hidden_states), attention_mask=attention_mask, position_ids=position_ids,
        past_key_values=past_key_values, use_cache=use_cache, position_embeddings=position_embeddings, **kwargs,
    )
    hidden_states = hidden_states + inner
    return added(hidden_states, 2 * self.gate() * self.mlp(self.post_attention_layernorm(hidden_states)))  # gate
"""


def ids(seed: int = 0, batch: int = 2, length: int = 7) -> torch.Tensor:
    return torch.randint(3, 40, (batch, length), generator=torch.Generator().manual_seed(seed))
