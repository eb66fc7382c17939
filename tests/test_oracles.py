"""Attached to models of transformers, every method equals what other libraries computed: outputs and gradients."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

import peftc
from peftc.graph.sites import Trace
from peftc.plan import resolve
from peftc.report.budget import budget
from peftc.rewrite import rewrite
from peftc.runtime.attach import attach
from peftc.runtime.proof import prove
from peftc.spec.load import load
from peftc.trace import trace_model

Tensors = Mapping[str, Tensor]
Part = Callable[[Tensor, int], Tensor]
Rule = tuple[str, str, Part]

HOME = Path(__file__).parent / "oracles"
PREFIX = "{method: prefix, length: 3, reparametrize: {hidden: 10}%s}"
PARALLEL = "{method: adapter, variant: parallel, bottleneck: 6, scale: 4}"
GATED = ", gate: sequence"
METHODS = {
    "lora": "{method: lora, rank: 4, alpha: 8}",
    "lora_all": "{method: lora, rank: 4, alpha: 8, at: [q, k, v, ffn_up, ffn_down]}",
    "pfeiffer": "{method: adapter, bottleneck: 6}",
    "houlsby": "{method: adapter, variant: houlsby, bottleneck: 6, activation: swish}",
    "parallel": PARALLEL,
    "prefix_flat": "{method: prefix, length: 3}",
    "prefix_mlp": PREFIX % "",
    "ia3": "{method: ia3, at: [k, v, ffn_up]}",
    "mam": f"{PREFIX % ''}, {PARALLEL}",
    "unipelt": f"{PREFIX % GATED}, {{method: lora, rank: 4{GATED}}}, {{method: adapter, bottleneck: 6{GATED}}}",
}
AUTHORS = {
    "unipelt_lora_gate": f"{{method: lora, rank: 4{GATED}}}",
    "unipelt_prefix_gate": f"{{method: prefix, length: 5, reparametrize: {{hidden: 32}}{GATED}}}",
    "unipelt_adapter_gate": f"{{method: adapter, bottleneck: 6{GATED}}}",
}
SPECS = {f"{base}.{name}": text for base in ("bert", "gpt2") for name, text in METHODS.items()} | AUTHORS


@pytest.mark.parametrize("name", SPECS)
def test_outputs_and_gradients(name: str, tmp_path: Path) -> None:
    tensors, config = oracle(name)
    filled = AutoConfig.for_model(**{"model_type": "bert", **config})
    model: Any = AutoModel.from_config(filled, attn_implementation="eager")
    model.load_state_dict({key: tensors[f"param.{key}"] for key in model.state_dict()})
    path = tmp_path / "oracle.yaml"
    path.write_text(f"name: oracle\nbase: {{config: {{model_type: bert}}}}\nmethods: [{SPECS[name]}]\n")
    attached(model, path, forbidden=name == "gpt2.unipelt")
    parts = {key: theirs(key, tensors) for key, p in model.named_parameters() if p.requires_grad}
    for key, (source, part) in parts.items():
        parameter = model.get_parameter(key)
        parameter.data = part(tensors[f"param.{source}"]).reshape(parameter.shape).clone()
    given = {key: tensors[key] for key in ("input_ids", "attention_mask", "position_ids") if key in tensors}
    compare_outputs(model.eval()(**given).last_hidden_state, tensors)
    for key, (source, part) in parts.items():
        gradient = model.get_parameter(key).grad
        assert gradient is not None
        expected = part(tensors[f"grad.{source}"]).reshape(gradient.shape)
        torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-5)
    added = {key.removeprefix("grad.") for key in tensors if key.startswith("grad.")} - set(model.state_dict())
    assert {source for source, _ in parts.values()} == added


def attached(model: nn.Module, spec: Path, forbidden: bool) -> None:
    """Through the front door; for gates that the language refuses in a causal model, stage by stage behind its back."""
    if not forbidden:
        peftc.attach(model, spec)
        return
    with pytest.raises(peftc.PeftcError, match="token"):
        peftc.attach(model, spec)
    from peftc.emit.artifact import emit

    plan = resolve(load(spec), acausal(trace_model(model)))
    program = rewrite(plan, plan.trace)
    attach(model, emit(program, budget(plan), prove(program)))


def acausal(trace: Trace) -> Trace:
    """The same trace, whose sites say that they may look ahead."""
    units = {u: replace(u, sites=tuple(replace(site, causal=False) for site in u.sites)) for u in trace.units}
    layers = tuple(replace(layer, units=tuple((p, units[u]) for p, u in layer.units)) for layer in trace.layers)
    return replace(trace, units=tuple(units.values()), layers=layers)


def oracle(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Every tensor of a file, and the base's config."""
    with safe_open(HOME / f"{name}.safetensors", "pt") as file:
        header, names = file.metadata(), file.keys()
        return {name: file.get_tensor(name) for name in names}, json.loads(header.get("config") or header["base"])


def compare_outputs(output: Tensor, tensors: Tensors) -> None:
    """To 1e-5 at real positions; then the gradients of the loss that the file's are of."""
    if "output" not in tensors:
        torch.testing.assert_close(output, tensors["last_hidden_state"], atol=1e-5, rtol=1e-5)
        output.square().mean().backward()
        return
    real = tensors["attention_mask"].bool()
    torch.testing.assert_close(output[real], tensors["output"][real], atol=1e-5, rtol=1e-5)
    loss = (output * tensors["weight"] * tensors["attention_mask"][..., None]).sum()
    loss.backward()


def theirs(name: str, tensors: Tensors) -> tuple[str, Callable[[Tensor], Tensor]]:
    """Which of their parameters, and which part of it, one of ours is."""
    if not (found := re.fullmatch(r"(?:(encoder\.layer|h)\.(\d+)\.)?(.*)", name)):
        raise AssertionError(name)
    home, layer, inner = found[1] or "", int(found[2] or 0), found[3]
    for ours, wanted, part in RULES[home]:
        if match := re.fullmatch(ours, inner):
            own = f"{home}.{layer}." if home else ""
            path = re.sub(r"<(\d)>", lambda group, m=match: m[int(group[1])], wanted)  # type: ignore[misc]
            hits = [key for key in tensors if re.fullmatch(rf"param\.(?:{re.escape(own)})?{path}", key)]
            if hits:
                return hits[0].removeprefix("param."), in_layer(part, layer)
    raise AssertionError(f"no tensor for {name}")


def in_layer(part: Part, layer: int) -> Callable[[Tensor], Tensor]:
    return lambda tensor: part(tensor, layer)


def whole(tensor: Tensor, layer: int) -> Tensor:
    return tensor


def part_of(index: int, parts: int) -> Part:
    """One of the parts of a fused projection that stand in one tensor, one after the other."""
    return lambda tensor, layer: tensor.chunk(parts)[index]


def fused(index: int) -> Part:
    """q, k or v of a fused LoRA: three parts where all have one, else two, for q and v."""
    return lambda tensor, layer: tensor.chunk(tensor.shape[0] // SIZES[tensor.shape[1:]])[index]


def flat(index: int) -> Part:
    """The flat tables in one vector: position, layer, key or value, head, width of a head."""
    return lambda tensor, layer: tensor.reshape(3, -1, 24)[:, 2 * layer + index]


SIZES = {torch.Size([24]): 4, torch.Size([4]): 24}
POOL = r"(?:.*prefix_tunings\.a\.self_prefix\."
TRUNK: Sequence[Rule] = [
    (r"prefix_trunk\.E", rf"{POOL}wte|encoder\.prefix_enc_embed)\.weight", whole),
    (r"prefix_trunk\.W1", rf"{POOL}control_trans|encoder\.prefix_embed_MLP)\.0\.weight", whole),
    (r"prefix_trunk\.b1", rf"{POOL}control_trans|encoder\.prefix_embed_MLP)\.0\.bias", whole),
    (r"prefix_trunk\.W2", rf"{POOL}control_trans|encoder\.prefix_embed_MLP)\.2\.weight", whole),
    (r"prefix_trunk\.b2", rf"{POOL}control_trans|encoder\.prefix_embed_MLP)\.2\.bias", whole),
]
BERT: Sequence[Rule] = [
    (r"attention\.self\.attention_prefix\.key", rf"{POOL}control_trans)", flat(0)),
    (r"attention\.self\.attention_prefix\.value", rf"{POOL}control_trans)", flat(1)),
    (r".*attention_prefix_gate\.(\w+)", r"attention\.self\.(?:prefix_tuning\.prefix_gates\.a|prefix_gate)\.<1>", whole),
    (r"(attention\.self\.\w+)_lora\.(A|B)", r"<1>\.(?:loras\.a\.)?lora_<2>", whole),
    (r"(attention\.self\.\w+)_lora_gate\.(\w+)", r"<1>\.(?:loras\.a\.gate|lora_gate)\.<2>", whole),
    (r"(attention\.self\.\w+)_ia3\.\w+", r"<1>\.loras\.a\.lora_B", whole),
    (r"ffn_up_lora\.(A|B)", r"intermediate\.dense\.loras\.a\.lora_<1>", whole),
    (r"ffn_down_lora\.(A|B)", r"output\.dense\.loras\.a\.lora_<1>", whole),
    (r"\w+_ia3\.\w+", r"intermediate\.dense\.loras\.a\.lora_B", whole),
    (r"ffn_adapter\.(down|up)", r"output\.adapters\.\w+\.adapter_<1>(?:\.0)?\.weight", whole),
    (r"ffn_adapter\.(down|up)_bias", r"output\.adapters\.\w+\.adapter_<1>(?:\.0)?\.bias", whole),
    (r"ffn_adapter_gate\.(\w+)", r"output\.adapters\.\w+\.gate\.<1>", whole),
    (r"\w+_adapter\.(down|up)", r"attention\.output\.adapters\.\w+\.adapter_<1>(?:\.0)?\.weight", whole),
    (r"\w+_adapter\.(down|up)_bias", r"attention\.output\.adapters\.\w+\.adapter_<1>(?:\.0)?\.bias", whole),
]
GPT2: Sequence[Rule] = [
    (r"attn\.attention_prefix\.key", rf"{POOL}control_trans)", flat(0)),
    (r"attn\.attention_prefix\.value", rf"{POOL}control_trans)", flat(1)),
    (r"attn\.attention_prefix_gate\.(\w+)", r"attn\.prefix_tuning\.prefix_gates\.a\.<1>", whole),
    (r"attn\.q_lora\.(A|B)", r"attn\.c_attn\.loras\.a\.lora_<1>", fused(0)),
    (r"attn\.k_lora\.(A|B)", r"attn\.c_attn\.loras\.a\.lora_<1>", fused(1)),
    (r"attn\.v_lora\.(A|B)", r"attn\.c_attn\.loras\.a\.lora_<1>", fused(-1)),
    (r"attn\.q_lora_gate\.(\w+)", r"attn\.c_attn\.loras\.a\.gate\.<1>", part_of(0, 2)),
    (r"attn\.v_lora_gate\.(\w+)", r"attn\.c_attn\.loras\.a\.gate\.<1>", part_of(1, 2)),
    (r"attn\.k_ia3\.\w+", r"attn\.c_attn\.loras\.a\.lora_B", part_of(0, 2)),
    (r"attn\.v_ia3\.\w+", r"attn\.c_attn\.loras\.a\.lora_B", part_of(1, 2)),
    (r"\w*c_fc_lora\.(A|B)", r"mlp\.c_fc\.loras\.a\.lora_<1>", whole),
    (r"\w*c_proj_lora\.(A|B)", r"mlp\.c_proj\.loras\.a\.lora_<1>", whole),
    (r"\w+_ia3\.\w+", r"mlp\.c_fc\.loras\.a\.lora_B", whole),
    (r"ffn_adapter\.(down|up)", r"output_adapters\.adapters\.a\.adapter_<1>(?:\.0)?\.weight", whole),
    (r"ffn_adapter\.(down|up)_bias", r"output_adapters\.adapters\.a\.adapter_<1>(?:\.0)?\.bias", whole),
    (r"ffn_adapter_gate\.(\w+)", r"output_adapters\.adapters\.a\.gate\.<1>", whole),
    (r"\w+_adapter\.(down|up)", r"attention_adapters\.adapters\.a\.adapter_<1>(?:\.0)?\.weight", whole),
    (r"\w+_adapter\.(down|up)_bias", r"attention_adapters\.adapters\.a\.adapter_<1>(?:\.0)?\.bias", whole),
]
RULES = {"": TRUNK, "encoder.layer": BERT, "h": GPT2}
