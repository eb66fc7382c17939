"""Every method, rewritten into layers written by hand, equals what other libraries computed: outputs and gradients."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peftc import modules
from peftc.methods.adapter import Adapter
from peftc.methods.base import Method
from peftc.methods.ia3 import IA3
from peftc.methods.lora import LoRA
from peftc.methods.prefix import Prefix
from tests.methods.plain import PostNorm, PreNorm, Stack, oracle, rewritten

Tensors = Mapping[str, Tensor]
G: dict[str, Any] = {"gate": {"kind": "sequence"}}
MLP: dict[str, Any] = {"length": 3, "reparametrize": {"hidden": 10}}
ALL = ("q", "k", "v", "ffn_up", "ffn_down")
METHODS: dict[str, tuple[Method, ...]] = {
    "lora": (LoRA(rank=4, alpha=8),),
    "lora_all": (LoRA(rank=4, alpha=8, at=ALL),),
    "pfeiffer": (Adapter(bottleneck=6),),
    "houlsby": (Adapter(bottleneck=6, variant="houlsby", activation="swish"),),
    "parallel": (Adapter(bottleneck=6, variant="parallel", scale=4),),
    "prefix_flat": (Prefix(length=3),),
    "prefix_mlp": (Prefix(**MLP),),
    "ia3": (IA3(at=("k", "v", "ffn_up")),),
    "mam": (Prefix(**MLP), Adapter(bottleneck=6, variant="parallel", scale=4)),
    "unipelt": (Prefix(**MLP, **G), LoRA(rank=4, alpha=8, **G), Adapter(bottleneck=6, **G)),
}
AUTHORS: dict[str, tuple[Method, ...]] = {
    "unipelt_lora_gate": (LoRA(rank=4, **G),),
    "unipelt_prefix_gate": (Prefix(length=5, reparametrize={"hidden": 32}, **G),),
    "unipelt_adapter_gate": (Adapter(bottleneck=6, **G),),
}


def trunk_for(methods: Sequence[Method], width: int, layers: int) -> modules.PrefixTrunk | None:
    found = [m for m in methods if isinstance(m, Prefix) and m.reparametrize]
    return (
        modules.PrefixTrunk(found[0].length, width, found[0].reparametrize.hidden, (width,) * 2 * layers)
        if found
        else None
    )


@pytest.mark.parametrize("name", [*(f"bert.{m}" for m in METHODS), *AUTHORS])
def test_post_norm(name: str) -> None:
    tensors, config = oracle(name)
    methods = AUTHORS.get(name) or METHODS[name.removeprefix("bert.")]
    d, n = config["hidden_size"], config["num_hidden_layers"]
    trunk = trunk_for(methods, d, n)
    layers = [PostNorm(d, config["intermediate_size"], config["num_attention_heads"]) for _ in range(n)]
    stack = Stack([rewritten(layer, methods, trunk, i) for i, layer in enumerate(layers)], trunk)
    names = load(stack, tensors, "encoder.layer", BERT)
    table = {
        key.removeprefix("param.embeddings."): value for key, value in tensors.items() if "param.embeddings" in key
    }
    ids = tensors["input_ids"]
    positions, types = table["position_embeddings.weight"][: ids.shape[1]], table["token_type_embeddings.weight"][0]
    x = table["word_embeddings.weight"][ids] + positions + types
    x = nn.functional.layer_norm(x, (d,), table["LayerNorm.weight"], table["LayerNorm.bias"], 1e-12)
    compare(stack, tensors, names, stack(x, additive(tensors["attention_mask"])))


@pytest.mark.parametrize("name", METHODS)
def test_pre_norm(name: str) -> None:
    tensors, config = oracle(f"gpt2.{name}")
    d, n = config["n_embd"], config["n_layer"]
    trunk = trunk_for(METHODS[name], d, n)
    layers = [PreNorm(d, 4 * d, config["n_head"]) for _ in range(n)]
    stack = Stack([rewritten(layer, METHODS[name], trunk, i) for i, layer in enumerate(layers)], trunk)
    names = load(stack, tensors, "h", GPT2)
    x = tensors["param.wte.weight"][tensors["input_ids"]] + tensors["param.wpe.weight"][tensors["position_ids"]]
    ahead = torch.full((x.shape[1], x.shape[1]), torch.finfo().min).triu(1)
    x = stack(x, torch.maximum(additive(tensors["attention_mask"]) + ahead, torch.tensor(torch.finfo().min)))
    x = nn.functional.layer_norm(x, (d,), tensors["param.ln_f.weight"], tensors["param.ln_f.bias"], 1e-5)
    compare(stack, tensors, names, x)


def additive(mask: Tensor) -> Tensor:
    return (1 - mask[:, None, None].float()) * torch.finfo().min


def compare(stack: nn.Module, tensors: Tensors, names: Mapping[str, tuple[str, Any]], output: Tensor) -> None:
    """Outputs, then the gradients of what was added, to 1e-5."""
    if "output" in tensors:
        real = tensors["attention_mask"].bool()
        torch.testing.assert_close(output[real], tensors["output"][real], atol=1e-5, rtol=1e-5)
        (output * tensors["weight"] * tensors["attention_mask"][..., None]).sum().backward()
    else:
        torch.testing.assert_close(output, tensors["last_hidden_state"], atol=1e-5, rtol=1e-5)
        (output**2).mean().backward()
    checked = 0
    for name, parameter in stack.named_parameters():
        theirs, part = names[name]
        if f"grad.{theirs}" in tensors:
            expected = part(tensors[f"grad.{theirs}"])
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad, expected.reshape(parameter.shape), atol=1e-5, rtol=1e-4)
            checked += 1
    assert checked


def load(
    stack: nn.Module, tensors: Tensors, prefix: str, patterns: Sequence[tuple[str, str, Any]]
) -> dict[str, tuple[str, Any]]:
    """Give every parameter its value in the file; return which tensor and which part of it that is."""
    names = {}
    for name, parameter in stack.named_parameters():
        index, inner = ([*name.split(".", 2), ""])[1:3] if name.startswith("layers.") else ("0", name)
        theirs, part = translated(inner, patterns, tensors, f"{prefix}.{index}.")
        names[name] = (theirs, lambda t, part=part, p=parameter, i=int(index): part(t, p, i))
        parameter.data = names[name][1](tensors[f"param.{theirs}"]).reshape(parameter.shape).clone()
    return names


def translated(name: str, patterns: Sequence[tuple[str, str, Any]], tensors: Tensors, prefix: str) -> tuple[str, Any]:
    """Their name of a parameter, and how it is cut out of that tensor."""
    for ours, theirs, part in patterns:
        if match := re.fullmatch(ours, name):
            wanted = re.sub(r"<(\d)>", lambda group: match[int(group[1])], theirs)
            for path in (prefix + wanted, wanted):
                if found := next((k for k in tensors if re.fullmatch("param." + path, k)), None):
                    return found.removeprefix("param."), part
    raise AssertionError(f"no tensor for {name}")


def whole(tensor: Tensor, parameter: Tensor, layer: int) -> Tensor:
    return tensor


def transposed(tensor: Tensor, parameter: Tensor, layer: int) -> Tensor:
    return tensor.T


def part_of(index: int) -> Any:
    """One of the parts of a fused projection that stand in one tensor, one after the other."""

    def part(tensor: Tensor, parameter: Tensor, layer: int) -> Tensor:
        return tensor.split(parameter.shape[0])[index]

    return part


def flat(index: int) -> Any:
    """The flat tables in one vector: layer, key or value, head, position, width of a head."""

    def part(tensor: Tensor, parameter: Tensor, layer: int) -> Tensor:
        length, width = parameter.shape
        return tensor.reshape(length, -1, width)[:, 2 * layer + index]

    return part


PEER = r".*prefix_tunings\.a\.self_prefix\."
SHARED = [
    (r"\w+_adapter_gate\.(weight|bias)", r"output.*adapters\.\w+\.gate\.<1>", whole),
    (r"trunk\.E", rf"({PEER}wte|encoder\.prefix_enc_embed)\.weight", whole),
    (r"trunk\.W1", rf"({PEER}control_trans|encoder\.prefix_embed_MLP)\.0\.weight", whole),
    (r"trunk\.b1", rf"({PEER}control_trans|encoder\.prefix_embed_MLP)\.0\.bias", whole),
    (r"trunk\.W2", rf"({PEER}control_trans|encoder\.prefix_embed_MLP)\.2\.weight", whole),
    (r"trunk\.b2", rf"({PEER}control_trans|encoder\.prefix_embed_MLP)\.2\.bias", whole),
    (r"attention_prefix\.key", rf"{PEER}control_trans", flat(0)),
    (r"attention_prefix\.value", rf"{PEER}control_trans", flat(1)),
    (r"attention_prefix_gate\.(weight|bias)", r".*(?:prefix_gates\.a|prefix_gate)\.<1>", whole),
]
BERT = [
    *SHARED,
    (r"(query|key|value)\.(weight|bias)", r"attention\.self\.<1>\.<2>", whole),
    (r"dense\.(weight|bias)", r"attention\.output\.dense\.<1>", whole),
    (r"norm\.(weight|bias)", r"attention\.output\.LayerNorm\.<1>", whole),
    (r"up\.(weight|bias)", r"intermediate\.dense\.<1>", whole),
    (r"down\.(weight|bias)", r"output\.dense\.<1>", whole),
    (r"last\.(weight|bias)", r"output\.LayerNorm\.<1>", whole),
    (r"(query|key|value)_lora\.(A|B)", r"attention\.self\.<1>\.(?:loras\.a\.)?lora_<2>", whole),
    (r"(query|value)_lora_gate\.(weight|bias)", r"attention\.self\.<1>\.(?:loras\.a\.gate|lora_gate)\.<2>", whole),
    (r"up_lora\.(A|B)", r"intermediate\.dense\.loras\.a\.lora_<1>", whole),
    (r"down_lora\.(A|B)", r"output\.dense\.loras\.a\.lora_<1>", whole),
    (r"(key|value)_ia3\.l", r"attention\.self\.<1>\.loras\.a\.lora_B", whole),
    (r"up_ia3\.l", r"intermediate\.dense\.loras\.a\.lora_B", whole),
    (r"ffn_adapter\.(down|up)", r"output\.adapters\.\w+\.adapter_<1>(?:\.0)?\.weight", whole),
    (r"ffn_adapter\.(down|up)_bias", r"output\.adapters\.\w+\.adapter_<1>(?:\.0)?\.bias", whole),
    (r"attention_adapter\.(down|up)", r"attention\.output\.adapters\.\w+\.adapter_<1>(?:\.0)?\.weight", whole),
    (r"attention_adapter\.(down|up)_bias", r"attention\.output\.adapters\.\w+\.adapter_<1>(?:\.0)?\.bias", whole),
]
GPT2 = [
    *SHARED,
    (r"qkv\.weight", r"attn\.c_attn\.weight", transposed),
    (r"qkv\.bias", r"attn\.c_attn\.bias", whole),
    (r"dense\.weight", r"attn\.c_proj\.weight", transposed),
    (r"dense\.bias", r"attn\.c_proj\.bias", whole),
    (r"norm\.(weight|bias)", r"ln_1\.<1>", whole),
    (r"last\.(weight|bias)", r"ln_2\.<1>", whole),
    (r"up\.weight", r"mlp\.c_fc\.weight", transposed),
    (r"up\.bias", r"mlp\.c_fc\.bias", whole),
    (r"down\.weight", r"mlp\.c_proj\.weight", transposed),
    (r"down\.bias", r"mlp\.c_proj\.bias", whole),
    (r"q_lora\.(A|B)", r"attn\.c_attn\.loras\.a\.lora_<1>", part_of(0)),
    (r"k_lora\.(A|B)", r"attn\.c_attn\.loras\.a\.lora_<1>", part_of(1)),
    (r"v_lora\.(A|B)", r"attn\.c_attn\.loras\.a\.lora_<1>", part_of(-1)),
    (r"q_lora_gate\.(weight|bias)", r"attn\.c_attn\.loras\.a\.gate\.<1>", part_of(0)),
    (r"v_lora_gate\.(weight|bias)", r"attn\.c_attn\.loras\.a\.gate\.<1>", part_of(1)),
    (r"k_ia3\.l", r"attn\.c_attn\.loras\.a\.lora_B", part_of(0)),
    (r"v_ia3\.l", r"attn\.c_attn\.loras\.a\.lora_B", part_of(1)),
    (r"up_lora\.(A|B)", r"mlp\.c_fc\.loras\.a\.lora_<1>", whole),
    (r"down_lora\.(A|B)", r"mlp\.c_proj\.loras\.a\.lora_<1>", whole),
    (r"up_ia3\.l", r"mlp\.c_fc\.loras\.a\.lora_B", whole),
    (r"ffn_adapter\.(down|up)", r"output_adapters\.adapters\.a\.adapter_<1>(?:\.0)?\.weight", whole),
    (r"ffn_adapter\.(down|up)_bias", r"output_adapters\.adapters\.a\.adapter_<1>(?:\.0)?\.bias", whole),
    (r"attention_adapter\.(down|up)", r"attention_adapters\.adapters\.a\.adapter_<1>(?:\.0)?\.weight", whole),
    (r"attention_adapter\.(down|up)_bias", r"attention_adapters\.adapters\.a\.adapter_<1>(?:\.0)?\.bias", whole),
]
