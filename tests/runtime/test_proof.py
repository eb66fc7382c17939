"""The proof says what it ran, and a promise that is not kept is a Defect."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from peftc import modules
from peftc.compiler import planned
from peftc.emit.artifact import printed
from peftc.errors import Defect
from peftc.plan import resolve
from peftc.rewrite import rewrite
from peftc.rewrite.program import Program
from peftc.runtime.examples import Filler, recordings
from peftc.runtime.namespace import module_of
from peftc.runtime.proof import prove, without_additions
from peftc.runtime.unit_run import CASES, UnitRun
from peftc.trace import trace_model
from tests.laws import spec
from tests.trace.nets import WIDTH, Block, Net

LLAMA = """
name: proven
base:
  config: {model_type: llama, hidden_size: 256, intermediate_size: 512, num_hidden_layers: 2, num_attention_heads: 4,
    num_key_value_heads: 2, vocab_size: 64}
  task: causal-lm
methods:
"""
BERT = """
name: proven
base:
  config: {model_type: bert, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 3, num_attention_heads: 4,
    vocab_size: 64}
  task: masked-lm
methods:
"""
CROSS = """
name: proven
base:
  config: {model_type: gpt2, n_embd: 16, n_layer: 1, n_head: 2, vocab_size: 64, add_cross_attention: true}
  task: causal-lm
methods:
"""


def program_of(folder: Path, text: str) -> Program:
    spec = folder / "proven.yaml"
    spec.write_text(text)
    plan = planned(spec)
    return rewrite(plan, plan.trace)


def test_a_large_unit_runs_on_a_smaller_config(tmp_path: Path) -> None:
    program = program_of(tmp_path, LLAMA + "  - method: lora\n  - method: adapter\n")
    proof = prove(program, largest=100_000)
    where = "run at hidden_size 16, intermediate_size 32, "
    for unit in ("LlamaAttention", "LlamaDecoderLayer"):
        assert f"{unit}: {where}where its graph has the same fingerprint" in proof.lines
        assert f"{unit}: without additions equal to {unit}, bit for bit, gradients too" in proof.lines
    assert proof.cases > 50
    assert prove(program).lines == tuple(line for line in proof.lines if where not in line)


def test_a_part_of_a_fused_projection_is_no_slice_once_it_is_a_sum(tmp_path: Path) -> None:
    """The activation rounds a slice otherwise than a sum, which is dense: where the base's is dense it is the same."""
    text = LLAMA.replace("llama,", "phi3, pad_token_id: 0,") + "  - {method: lora, at: [ffn_gate, ffn_down]}\n"
    whole = "Phi3DecoderLayer: with additions equal to Phi3DecoderLayer at initialisation, bit for bit"
    assert f"{whole}, with parts of fused projections laid out as sums are" in prove(program_of(tmp_path, text)).lines
    assert whole in prove(program_of(tmp_path, text.replace("ffn_gate, ", ""))).lines


class Turning(nn.Module):
    """Queries, keys and values of one linear map, turned before they are told apart."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out, self.norm = nn.Linear(32, 96), nn.Linear(32, 32), nn.LayerNorm(32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = self.qkv(self.norm(x)).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
        weights = (query @ key.transpose(-2, -1) * 8**-0.5).softmax(-1)
        read: torch.Tensor = x + self.out((weights @ value).transpose(1, 2).flatten(2))
        return read


def test_a_part_that_is_scaled_where_it_was_turned_keeps_the_order_of_its_axes() -> None:
    """A sum or a product of a slice is dense in the slice's own order, and a matrix product rounds by that order."""
    net = Net([Turning(), Turning()])
    net.embedding = nn.Embedding(11, 32)
    trace = trace_model(net)
    lines = prove(rewrite(resolve(spec([{"method": "ia3", "at": ["k", "v"]}]), trace), trace)).lines
    assert any("with parts of fused projections laid out as sums are" in line for line in lines)


def test_a_part_of_a_fused_projection_in_one_branch(tmp_path: Path) -> None:
    """Keys and values of another sequence are read where there is one: else its unit has no such part."""
    lines = prove(program_of(tmp_path, CROSS + "  - {method: lora, at: [cross.k, cross.v]}\n")).lines
    assert any("with parts of fused projections laid out as sums are" in line for line in lines)


def test_cases_and_scenarios_meet_in_pairs(tmp_path: Path) -> None:
    """A scenario is a mask and a cache: each at all sizes in fp32 without dropout, and under both of every choice."""
    program = program_of(tmp_path, LLAMA + "  - method: lora\n")
    body, bare = program.bodies[0], module_of("bare", printed(without_additions(program)).text)
    run = UnitRun.at(program, body, body.paths[0], recordings(program.plan.trace), {}, bare)
    scenarios = {what.partition(", ")[2] for what, _ in run.calls}
    assert len(scenarios) == 8
    assert len(run.calls) == 2 * len(scenarios) - 1  # over a cache, one example is called alike, padded or not
    assert [case for case, _ in run.chosen] == list(CASES[1:])
    for scenario in scenarios:
        met = {(c.training, c.dtype, c.eager) for c, calls in run.chosen for w, _ in calls if w.endswith(scenario)}
        assert all(len(set(choice)) == 2 for choice in zip(*met, strict=True))

    alone = replace(run, calls=[(what, call) for what, call in run.calls if what.endswith("unpadded, cache: none")])
    assert [len(calls) for _, calls in alone.chosen] == [1] * (len(CASES) - 1)


class Relay(Net):
    """Its first block alone is given nothing to add."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x: torch.Tensor = self.embedding(ids)
        for i, block in enumerate(self.blocks):
            x = block(x, more=x if i else None)
        return x


class Adding(Block):
    def forward(self, x: torch.Tensor, more: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
        return super().forward(x if more is None else x + 0.5 * more)


def test_what_only_a_twin_is_given_is_run() -> None:
    trace = trace_model(Relay([Adding(), Adding()]))
    program = rewrite(resolve(spec([{"method": "adapter"}]), trace), trace)
    body, bare = program.bodies[0], module_of("bare", printed(without_additions(program)).text)
    calls = UnitRun.at(program, body, body.paths[0], recordings(trace), {}, bare).calls
    assert {call.named["more"] is None for _, call in calls} == {True, False}


def test_what_is_not_run_is_said(tmp_path: Path) -> None:
    proof = prove(program_of(tmp_path, LLAMA + "  - method: lora\n"), largest=100)
    assert proof.lines == ("LlamaAttention: not run: too large, and no smaller config has the same graph",)


def test_modules_outside_the_layers_are_run(tmp_path: Path) -> None:
    text = BERT + "  - method: lora\n    modules: [cls.predictions.decoder, bert.embeddings.word_embeddings]\n"
    lines = prove(program_of(tmp_path, text)).lines
    for unit in ("Linear", "Embedding"):
        assert f"{unit}: with additions equal to {unit} at initialisation, bit for bit" in lines
        assert f"{unit}: every parameter that trains has a gradient, no other has one" in lines


def test_every_size_is_run(tmp_path: Path) -> None:
    text = BERT + "".join(
        f"  - method: lora\n    rank: {rank}\n    layers: {layers}\n" for rank, layers in ((2, 0), (3, "1-2"))
    )
    one = prove(program_of(tmp_path, BERT + "  - method: lora\n"))
    assert prove(program_of(tmp_path, text)).cases > one.cases


def test_a_forgotten_parameter(tmp_path: Path) -> None:
    """The emitted file would leave frozen what the plan trains."""
    program = program_of(tmp_path, BERT + "  - method: lora\n")
    with pytest.raises(Defect, match=r"gradients of \['bert.encoder.layer.0.attention.self.query_lora.A'\]"):
        prove(replace(program, trained=program.trained[1:]))


def test_a_parameter_too_many(tmp_path: Path) -> None:
    program = program_of(tmp_path, BERT + "  - method: lora\n")
    extra = "bert.encoder.layer.0.attention.self.query.weight"
    with pytest.raises(Defect, match=rf"gradients of \['{extra}'\]"):
        prove(replace(program, trained=(*program.trained, extra)))


def test_a_trunk_that_learns_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = program_of(tmp_path, BERT + "  - method: prefix\n    length: 3\n    reparametrize: {hidden: 8}\n")
    prove(program)
    monkeypatch.setattr(modules, "PrefixTrunk", Silent)
    with pytest.raises(Defect, match="prefix_trunk"):
        prove(program)


class Silent(modules.PrefixTrunk):
    """A trunk whose tables do not depend on it."""

    def forward(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        key, value = super().forward(index)
        return key.detach(), value.detach()


SWITCH = """
name: proven
base:
  config: {model_type: switch_transformers, d_model: 32, d_kv: 8, d_ff: 64, num_layers: 2, num_decoder_layers: 2,
    num_heads: 4, num_experts: 2, vocab_size: 64, num_sparse_encoder_layers: 1, num_sparse_decoder_layers: 1}
  task: seq2seq-lm
methods:
"""
FUNNEL = """
name: proven
base:
  config: {model_type: funnel, d_model: 32, d_inner: 64, n_head: 4, d_head: 8, block_sizes: [1, 1], vocab_size: 64,
    num_decoder_layers: 1}
  task: masked-lm
methods:
"""
CANINE = """
name: proven
base:
  config: {model_type: canine, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 4,
    num_hash_buckets: 64}
methods:
"""
FNET = """
name: proven
base:
  config: {model_type: fnet, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, vocab_size: 64}
  task: masked-lm
methods:
"""


def test_a_base_that_runs_in_float32_alone(tmp_path: Path) -> None:
    """Its mixing is a Fourier transform, which torch has no bfloat16 for."""
    lines = prove(program_of(tmp_path, FNET + "  - method: adapter\n")).lines
    equal = "FNetLayer: without additions equal to FNetLayer, bit for bit, gradients too"
    assert f"{equal}; 2 of 6 runs left out, in which its own forward fails, or gives no finite number" in lines


def test_a_module_that_sets_its_own_attributes_stays_a_call(tmp_path: Path) -> None:
    """Such a router makes its weights float32 when it runs: inlined, it would not."""
    lines = prove(program_of(tmp_path, SWITCH + "  - method: adapter\n")).lines
    assert sum(line.endswith("bit for bit, gradients too") for line in lines) == 4


@pytest.mark.parametrize("text", [FUNNEL, CANINE])
def test_masks_that_are_another_s_and_multiplied(tmp_path: Path, text: str) -> None:
    """One asks a bool which positions are of one segment, whatever attends; the other subtracts its mask from one."""
    lines = prove(program_of(tmp_path, text + "  - method: lora\n  - method: adapter\n")).lines
    assert sum(line.endswith("no other has one") for line in lines) >= 2


def test_integers_are_indices_or_a_mask() -> None:
    ids, mask = (Filler(5, torch.float32, added=False)(torch.ones(sizes).int()) for sizes in ((2, 9), (2, 9, 9)))
    assert not ids.any()
    assert mask.dtype == torch.int32
    assert mask[..., 0].all() and not mask.all()


def test_one_number_for_each_example_is_a_flag_or_an_index() -> None:
    fill = Filler(0, torch.float32, False)
    assert set(fill(torch.empty(32, device="meta")).tolist()) == {0, 1}
    assert len(set(fill(torch.empty(4, 8, device="meta")).flatten().tolist())) == 32


class Placed(Net):
    """Tells each block the positions, which are zeros in the proof."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x, positions = self.embedding(ids), torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
        for block in self.blocks:
            x = block(x, positions=positions)
        result: torch.Tensor = x
        return result


class Late(Block):
    """A bias that no first position has."""

    def __init__(self) -> None:
        super().__init__()
        self.late_bias = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: torch.Tensor, positions: torch.Tensor | None = None, **kwargs: Any) -> torch.Tensor:
        return super().forward(x if positions is None else x + self.late_bias * positions[..., None])


def test_what_the_base_itself_does_not_reach_is_said() -> None:
    model = Placed([Late(), Late()]).eval()
    plan = resolve(spec([{"method": "bitfit"}, {"method": "adapter"}]), trace_model(model))
    lines = prove(rewrite(plan, plan.trace)).lines
    said = "no other has one; at these inputs not even in the base's own forward: blocks.0.late_bias"
    assert any(line.startswith("Late: ") and line.endswith(said) for line in lines)
