"""Resolving a spec on a base: order, names, gates, selections and the hash."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import permutations
from typing import Any

import pytest
import torch
from torch import nn

from peftc.errors import PeftcError
from peftc.graph.sites import Trace
from peftc.plan import Plan, resolve
from peftc.spec.load import loads
from peftc.trace import trace_model
from tests.byhand import WIDTH, by_hand, fused
from tests.trace.nets import Block, Net

LORA = "{method: lora, gate: {kind: sequence, scope: layer}}"
PREFIX = "{method: prefix, reparametrize: {hidden: 16}, gate: sequence}"
ADAPTER = "{method: adapter, bottleneck: 2, gate: sequence}"
BITFIT = "{method: bitfit}"


def planned(entries: Sequence[str], trace: Trace | None = None, more: str = "") -> Plan:
    lines = "".join(f"- {entry}\n" for entry in entries)
    text = f"name: x\nbase: {{config: {{model_type: tiny}}}}\nmethods:\n{lines}{more}"
    return resolve(loads(text), trace or by_hand())


def names(plan: Plan, layer: int = 0) -> list[str]:
    return [placement.name for placement in plan.placements if placement.layer and placement.layer.index == layer]


def test_order_and_names() -> None:
    plan = planned([PREFIX, BITFIT, ADAPTER, LORA])
    assert names(plan) == ["query_lora", "value_lora", "ffn_adapter", "attention_prefix"]
    assert [gate.name for gate in plan.gates[:3]] == ["lora_gate", "ffn_adapter_gate", "attention_prefix_gate"]
    assert [len(gate.members) for gate in plan.gates[:3]] == [2, 1, 1]
    assert {dict(gate.call.arguments)["width"] for gate in plan.gates} == {WIDTH}
    assert [(shared.tower, shared.name, len(shared.members)) for shared in plan.shared] == [
        ("encoder", "prefix_trunk", 4)
    ]
    assert [note for note in plan.notes if "lora" in note and "inert" in note]


def test_the_order_of_the_file_does_not_matter() -> None:
    again = "{method: lora, at: q, rank: 2, again: true}"
    plans = [planned(entries) for entries in permutations([PREFIX, LORA, again, ADAPTER, BITFIT])]
    assert len({plan.hash for plan in plans}) == 1
    assert {tuple(names(plan)) for plan in plans} == {tuple(names(plans[0]))}


@pytest.mark.parametrize(
    "other",
    [
        "{method: lora, rank: 9}",
        "{method: lora, layers: 0-2}",
        "{method: lora, at: q}",
        "{method: lora, gate: constant}",
        "{method: ia3}",
    ],
)
def test_the_hash_tells_plans_apart(other: str) -> None:
    plain = planned(["{method: lora}"])
    assert planned([other]).hash != plain.hash
    assert planned(["{method: lora}"], more="seed: 1\n").hash != plain.hash
    assert planned(["{method: lora, rank: 8, alpha: 16.0, layers: 0-3}"]).hash == plain.hash


def test_names_are_never_taken_twice() -> None:
    trace = by_hand()
    for layer in trace.layers:
        trace.model.get_submodule(f"{layer.path}.attention").register_buffer("query_lora", None)
    entries = ["{method: lora, at: q, gate: token}", "{method: lora, at: q, rank: 1, gate: token, again: true}"]
    plan = planned(entries, trace)
    assert names(plan) == ["query_lora_2", "query_lora_3"]
    assert [gate.name for gate in plan.gates[:2]] == ["query_lora_2_gate", "query_lora_3_gate"]


def test_a_name_stands_for_one_entry_in_every_layer() -> None:
    """The wide one stands everywhere and the narrow one beside it in layer 1 alone; those that never meet share one."""
    wide, narrow = "{method: adapter, bottleneck: 3}", "{method: adapter, bottleneck: 2, layers: 1, again: true}"
    plan = planned([wide, narrow])
    found = {(p.layer.index, p.name): p.entry for p in plan.placements if p.layer}
    assert found == {(1, "ffn_adapter"): 1, **{(layer, "ffn_adapter_2"): 0 for layer in range(4)}}
    apart = planned(["{method: adapter, bottleneck: 3, layers: 0-1}", "{method: adapter, bottleneck: 2, layers: 2-}"])
    assert {placement.name for placement in apart.placements} == {"ffn_adapter"}


class Feeding(Block):
    """A block that does not attend."""

    def forward(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        result: torch.Tensor = x + self.down(torch.relu(self.up(x)))
        return result


@cache
def hybrid() -> Trace:
    return trace_model(Net([Feeding(), Block(), Feeding(), Block()]))


def test_a_layer_is_a_block_whether_it_attends_or_not() -> None:
    plan = planned(["{method: adapter, bottleneck: 2}", "{method: lora, at: [q, v]}"], hybrid())
    adapters, loras = ([p for p in plan.placements if p.method.method == name] for name in ("adapter", "lora"))
    assert [p.path for p in adapters] == [f"blocks.{index}" for index in range(4)]
    assert [p.layer.index for p in loras if p.layer] == [1, 1, 3, 3]
    assert plan.notes == ("lora: no q, v in layers 0, 2 of the encoder",)


def test_a_layer_that_is_named_must_have_the_site() -> None:
    message = "no attention was found in layer 0 of the encoder, a Feeding: it has no site 'q'"
    with pytest.raises(PeftcError, match=message) as raised:
        planned(["{method: lora, at: q, layers: 0-1}"], hybrid())
    assert "its sites are ffn_up, ffn_down, ffn; 'q' is in layers 1, 3 of the encoder" in str(raised.value)


def test_lists_in_which_nothing_attends_are_named() -> None:
    model = Net([Block(), Block()])
    model.more = nn.ModuleList([Feeding(), Feeding()])
    trace = trace_model(model)
    assert planned(["{method: lora}"], trace).notes == (
        "more: no attention was found in 0, 1: no layers; modules: reaches them",
    )


class DownAndUp(Net):
    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__(blocks)
        self.middle, self.upwards = Block(), nn.ModuleList([Block(), Block()])

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x: torch.Tensor = self.middle(super().forward(ids))
        for block in self.upwards:
            x = block(x)
        return x


def test_a_block_between_two_lists_is_named() -> None:
    trace = trace_model(DownAndUp([Block(), Block()]))
    assert trace.towers() == ("blocks", "upwards")
    assert planned(["{method: lora}"], trace).notes == (
        "middle: a Block in no list of blocks: no layer; modules: reaches it",
    )


def test_where_nothing_attends_the_feed_forward_is_what_comes_last() -> None:
    trace = trace_model(Net([Feeding(), Feeding()]))
    assert planned(["{method: adapter, bottleneck: 2}"], trace).notes == (
        "nothing attends in the decoder: ffn is the last sublayer of a layer, whatever it mixes",
    )
    assert not planned(["{method: lora, modules: embedding}"], trace).notes


def test_parts_of_a_fused_projection_go_by_their_names() -> None:
    assert names(planned(["{method: lora}"], fused(by_hand()))) == ["q_lora", "v_lora"]


def test_central_gates_share_one_softmax() -> None:
    gate = "gate: {kind: central, shared: g}"
    plan = planned([f"{{method: lora, {gate}}}", f"{{method: prefix, {gate}}}"])
    assert len(plan.gates) == 4
    first = plan.gates[0]
    assert (first.name, first.path) == ("g_gate", "encoder.layer.0.attention")
    assert [member.name for member in first.members] == ["query_lora", "value_lora", "attention_prefix"]
    assert dict(first.call.arguments) == {"width": WIDTH, "members": 2}


def test_towers() -> None:
    trace = by_hand({"encoder": 2, "decoder": 3})
    plan = planned(
        ["{method: prefix, reparametrize: {hidden: 4}}", "{method: lora, towers: decoder, layers: last 1}"], trace
    )
    assert [shared.name for shared in plan.shared] == ["prefix_trunk_encoder", "prefix_trunk_decoder"]
    where = [(p.layer.tower, p.layer.index) for p in plan.placements if p.layer and p.method.method == "lora"]
    assert where == [("decoder", 2), ("decoder", 2)]


def test_modules() -> None:
    plan = planned(['{method: lora, modules: ["*.query", words]}'])
    assert [placement.path for placement in plan.placements] == [
        *(f"encoder.layer.{index}.attention" for index in range(4)),
        "words",
    ]
    assert plan.placements[-1].layer is None
    inside = planned(['{method: lora, modules: "*.query", layers: even}'])
    assert [placement.layer.index for placement in inside.placements if placement.layer] == [0, 2]


def test_a_glob_takes_what_it_can() -> None:
    plan = planned(['{method: lora, modules: "encoder.layer.0.*"}'])
    assert [placement.site.name for placement in plan.placements] == ["q", "k", "v", "o", "ffn_up", "ffn_down"]


class Partly(Block):
    """Beside what is a place: maps that are none, and what is no map."""

    def __init__(self) -> None:
        super().__init__()
        self.more = nn.ModuleDict({"idle": nn.Linear(WIDTH, WIDTH), "drop": nn.Dropout(), "norm": nn.LayerNorm(WIDTH)})
        self.more["used"], self.more["scaled"] = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        nn.utils.parametrizations.weight_norm(self.more["scaled"])

    def prepared(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        result: torch.Tensor = x * self.more["scaled"](self.more["used"](self.more["norm"](x)))
        return result


def test_a_glob_says_which_maps_it_leaves_out() -> None:
    plan = planned(['{method: lora, modules: "*.more.*"}'], trace_model(Net([Partly(), Partly()])))
    assert [placement.path for placement in plan.placements] == [f"blocks.{index}.more.used" for index in (0, 1)]
    assert plan.notes == (
        "lora: leaves out blocks.{0-1}.more.idle: its forward is never called",
        "lora: leaves out blocks.{0-1}.more.scaled: its weight is computed, and no parameter",
    )


def test_the_embedding_lies_outside_the_layers() -> None:
    plan = planned(["{method: lora, at: [q, embedding], rank: 4}"])
    assert [placement.site.name for placement in plan.placements] == ["q"] * 4 + ["embedding"]
    last = plan.placements[-1]
    assert (last.path, last.layer, last.name) == ("words", None, "embedding_lora")


def test_an_embedding_needs_no_layers() -> None:
    trace = replace(by_hand(), layers=())
    assert [placement.path for placement in planned(["{method: lora, at: embedding}"], trace).placements] == ["words"]
    with pytest.raises(PeftcError, match="has no layers that data flow could find"):
        planned(["{method: lora, at: [q, embedding]}"], trace)


@pytest.mark.parametrize(("changes", "who"), [({}, "TinyLayer"), ({"layers": ()}, "TinyModel")])
def test_a_base_without_an_embedding(changes: dict[str, Any], who: str) -> None:
    with pytest.raises(PeftcError, match=f"{who} has no site 'embedding'"):
        planned(["{method: lora, at: embedding}"], replace(by_hand(), others=(), **changes))


def test_a_constant_gate_of_a_layer_reads_nothing() -> None:
    plan = planned(["{method: lora, at: [o, ffn_down], gate: {kind: constant, scope: layer}}"])
    assert [len(gate.members) for gate in plan.gates] == [2] * 4


def test_selections() -> None:
    def trained(entry: str, more: str = "") -> set[str]:
        return {name for selection in planned([entry], more=more).selections for name in selection.names}

    everything = {name for name in by_hand().parameters if name.endswith("bias")}
    assert trained(BITFIT) == {name for name in everything if not name.startswith("classifier")}
    assert trained("{method: bitfit, at: q, layers: 1}") == {"encoder.layer.1.attention.query.bias"}
    assert trained("{method: norm, layers: 0}") == {"encoder.layer.0.norm.weight", "encoder.layer.0.norm.bias"}
    assert trained("{method: bitfit, modules: pooler}") == {"pooler.bias"}
    assert trained("{method: bitfit, at: q, modules: [pooler, '*.0.norm']}") == {
        name for name in everything if "query" in name or "0.norm" in name or "pooler" in name
    }
    with pytest.raises(PeftcError) as caught:
        trained("{method: bitfit, at: q, layers: 0-9}")
    assert len(caught.value.problems) == 1
    assert trained("{method: lora}", "train: [head]\n") == {"classifier.weight", "classifier.bias"}
    assert trained("{method: lora}", 'train: ["pool*", classifier]\n') == {
        f"{module}.{kind}" for module in ("pooler", "classifier") for kind in ("weight", "bias")
    }


def test_causal_gates() -> None:
    entries = ["{method: lora, gate: token}", "{method: adapter, gate: token}", "{method: prefix, gate: constant}"]
    plan = planned(entries, by_hand(causal=True))
    assert {gate.call.name for gate in plan.gates} == {"TokenGate", "ConstantGate"}
