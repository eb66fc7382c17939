"""What each edit makes of a small graph, asserted as printed statements; and that the order of placements is free."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import fx, nn

from peftc.errors import Defect
from peftc.graph.branches import leave
from peftc.graph.editor import Editor, Gating
from peftc.graph.sites import Attention, Embedding, Projection, Unit
from peftc.graph.verify import verify
from peftc.methods.adapter import Adapter
from peftc.methods.additive import Additive
from peftc.methods.call import ModuleCall
from peftc.methods.ia3 import IA3
from peftc.methods.lora import LoRA
from peftc.methods.prefix import Prefix
from tests.methods.plain import PostNorm, PreNorm, gating, rewritten
from tests.modules.test_additions import Draws

SEQUENCE, CONSTANT = {"kind": "sequence"}, {"kind": "constant"}


def statements(graph: fx.Graph) -> list[str]:
    """One line for each node that computes something; getitem and modules as they would be written."""
    lines = []
    for node in graph.nodes:
        if node.op in ("placeholder", "output"):
            continue
        options = [f"{key}={value}" for key, value in node.kwargs.items()]
        target = node.target if isinstance(node.target, str) else node.target.__name__
        comment = f"  # {node.meta['comment']}" if "comment" in node.meta else ""
        lines.append(f"{node.name} = {target}({', '.join([*map(str, node.args), *options])}){comment}")
    return lines


def edited(layer: PostNorm | PreNorm, placements: Sequence[tuple[Additive, str]]) -> tuple[fx.Graph, Editor]:
    graph = fx.Tracer().trace(layer)
    sites, editor = layer.sites(graph), Editor(graph)
    for method, at in placements:
        name = f"{sites[at].label}_{method.method}"
        with editor.at(sites[at], name, method.method, gating(method, sites[at], name)):
            method.rewrite(sites[at], editor)
    graph.lint()
    return graph, editor


def changes(layer: PostNorm | PreNorm, *placements: tuple[Additive, str]) -> list[str]:
    """The statements that are new or read something else."""
    before = statements(fx.Tracer().trace(layer))
    return [line for line in statements(edited(layer, placements)[0]) if line not in before]


def test_lora_adds_to_the_projection() -> None:
    assert changes(PostNorm(24, 40, 3), (LoRA(gate=SEQUENCE), "q")) == [
        "query_lora_gate = query_lora_gate(x)",
        "query_lora = query_lora(x)",
        "mul = mul(query_lora_gate, query_lora)",
        "added = added(query, mul)  # lora on q, gated",
        "unflatten = unflatten(added, -1, (3, -1))",
    ]


def test_lora_on_a_part_of_a_fused_projection() -> None:
    assert changes(PreNorm(24, 40, 3), (LoRA(), "v")) == [
        "v_lora = v_lora(norm)",
        "added = added(getitem_2, v_lora)  # lora on v",
        "unflatten_2 = unflatten(added, -1, (3, -1))",
    ]


def test_ia3_scales_what_lora_made_and_what_lora_reads() -> None:
    both = [(IA3(), "k"), (LoRA(), "k"), (LoRA(), "ffn_down"), (IA3(), "ffn_down")]
    assert changes(PostNorm(24, 40, 3), *both) == [
        "key_lora = key_lora(x)",
        "added = added(key, key_lora)  # lora on k",
        "key_ia3 = key_ia3(added)  # ia3 on k",
        "unflatten_1 = unflatten(key_ia3, -1, (3, -1))",
        "down_ia3 = down_ia3(gelu)  # ia3 on ffn_down",
        "down = down(down_ia3)",
        "down_lora = down_lora(down_ia3)",
        "added_1 = added(down, down_lora)  # lora on ffn_down",
        "add_1 = add(added_1, norm)",
    ]


def test_prefix_changes_the_attentions_call_alone() -> None:
    assert changes(PostNorm(24, 40, 3), (Prefix(gate=CONSTANT), "attention")) == [
        "attention_prefix_gate = attention_prefix_gate()",
        "attention_prefix = attention_prefix()",
        "with_prefix = with_prefix(transpose, transpose_1, transpose_2, mask, attention_prefix, "
        "attention_prefix_gate)  # prefix on attention, gated",
        "getitem = getitem(with_prefix, 0)",
        "getitem_1 = getitem(with_prefix, 1)",
        "getitem_2 = getitem(with_prefix, 2)",
        "attend = attend(transpose, getitem, getitem_1, getitem_2)",
    ]


def test_pfeiffer_reads_the_norm_of_the_sum() -> None:
    assert changes(PostNorm(24, 40, 3), (Adapter(), "ffn")) == [
        "add_2 = add(down, norm)",
        "last_1 = last(add_2)",
        "ffn_adapter = ffn_adapter(last_1)",
        "added = added(down, ffn_adapter)  # adapter on ffn",
        "add_1 = add(added, norm)",
    ]


def test_houlsby_reads_the_output() -> None:
    assert changes(PreNorm(24, 40, 3), (Adapter(variant="houlsby"), "attention_output")) == [
        "attention_adapter = attention_adapter(dense)",
        "added = added(dense, attention_adapter)  # adapter on attention_output",
        "add = add(added, x)",
    ]


PLACEMENTS: tuple[tuple[Additive, str], ...] = (
    (LoRA(rank=2, gate=SEQUENCE), "v"),
    (IA3(gate=SEQUENCE), "v"),
    (Prefix(length=2, gate=SEQUENCE), "attention"),
    (Adapter(variant="houlsby", bottleneck=4), "attention_output"),
    (IA3(), "o"),
    (LoRA(rank=2, gate=SEQUENCE), "ffn_down"),
    (IA3(gate=SEQUENCE), "ffn_down"),
    (Adapter(bottleneck=4, gate=SEQUENCE), "ffn"),
)


def randomised(module: nn.Module) -> nn.Module:
    for name, p in module.named_parameters():
        p.data = Draws(p.shape, torch.Generator().manual_seed(sum(map(ord, name)))).normal(0.5).float()
    return module


@pytest.mark.parametrize("layer", [PostNorm, PreNorm])
def test_the_order_of_placements_is_free(layer: type[PostNorm | PreNorm]) -> None:
    x, mask = torch.randn(2, 5, 24), torch.zeros(2, 1, 1, 5)
    outputs = []
    for order in itertools.islice(itertools.permutations(PLACEMENTS), 0, None, 5039):
        methods = [method.model_copy(update={"at": (site,)}) for method, site in order]
        outputs.append(randomised(rewritten(layer(24, 40, 3), methods))(x, mask))
    assert len(outputs) > 8
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0])


def test_one_gate_serves_several_placements() -> None:
    graph = fx.Tracer().trace(PostNorm(24, 40, 3))
    sites, editor = PostNorm(24, 40, 3).sites(graph), Editor(graph)
    for name in ("v", "q"):
        central = Gating("gate", ModuleCall("CentralGate", (("width", 24), ("members", 2))), member=1)
        with editor.at(sites[name], f"{name}_lora", "lora", central):
            LoRA().rewrite(sites[name], editor)
    graph.lint()
    gates = [line for line in statements(graph) if "gate" in line]
    assert gates == ["gate = gate(x)", "getitem = getitem(gate, 1)", *gates[2:]] and len(gates) == 4
    assert list(editor.additions) == ["v_lora", "gate", "q_lora"]


class Split(nn.Module):
    """A fused projection whose parts are of (batch, length, heads, width of a head)."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(6, 18)
        self.words = nn.Embedding(9, 6)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        part: torch.Tensor = self.qkv(self.words(ids)).view(2, -1, 2, 9)[..., 3:6]
        return part


def shaped(order: tuple[int, ...]) -> fx.Graph:
    """LoRA and IA3 on a part of two heads whose axes come in this order, and LoRA on an embedding."""
    graph = fx.Tracer().trace(Split())
    part, whole = (next(node for node in graph.nodes if node.name == name) for name in ("getitem", "qkv"))
    whole.meta["value"] = (torch.empty(2, 5, 18, device="meta"), torch.empty(3, 7, 18, device="meta"))
    sizes = [((2, 5, 2, 3)[axis], (3, 7, 2, 3)[axis]) for axis in order]
    part.meta["value"] = tuple(torch.empty(size, device="meta") for size in zip(*sizes, strict=True))
    part.meta["guard"] = (("past is None", True),)
    editor = Editor(graph)
    k = Projection("k", "qkv", "qkv", "getitem", 6, 6, (3, 4, 5, 12, 13, 14), dims=(2, 3), order=order)
    for method, site in ((LoRA(), k), (IA3(), k), (LoRA(), Embedding("embedding", "words", "words", 9, 6))):
        with editor.at(site, f"{site.label}_{method.method}", method.method):
            method.rewrite(site, editor)
    graph.lint()
    return graph


def test_a_delta_takes_the_shape_of_its_part() -> None:
    graph = shaped((0, 2, 3, 1))
    assert [line for line in statements(graph) if "getitem =" not in line and "view =" not in line] == [
        "words = words(ids)",
        "words_lora = words_lora(ids)",
        "added_1 = added(words, words_lora)  # lora on embedding",
        "qkv = qkv(added_1)",
        "size = size(getitem, -2)",
        "k_lora = k_lora(added_1)",
        "unflatten = unflatten(k_lora, -1, (-1, size))",
        "permute = permute(unflatten, 0, 2, 3, 1)",
        "added = added(getitem, permute)  # lora on k",
        "size_1 = size(added, -2)",
        "permute_1 = permute(added, 0, 3, 1, 2)",
        "flatten = flatten(permute_1, -2)",
        "k_ia3 = k_ia3(flatten)",
        "unflatten_1 = unflatten(k_ia3, -1, (-1, size_1))",
        "permute_2 = permute(unflatten_1, 0, 2, 3, 1)  # ia3 on k",
    ]
    guarded = {node.name for node in graph.nodes if "guard" in node.meta}
    moves = {"size", "size_1", "unflatten", "permute", "permute_1", "flatten", "unflatten_1", "permute_2"}
    assert guarded == {"getitem", "k_lora", "added", "k_ia3", *moves}


def test_axes_that_are_in_order_stay() -> None:
    lines = statements(shaped((0, 1, 2, 3)))
    assert {"added = added(getitem, view_as)  # lora on k", "flatten = flatten(added, -2)"} < set(lines)


@pytest.mark.parametrize(("place", "rate"), [((), ""), ((None, 0.0, True), "dropout_p=0.0, ")])
def test_a_plain_causal_call_gets_its_mask_from_the_prefix(place: tuple[Any, ...], rate: str) -> None:
    graph = fx.Graph()
    _x, query, key, value = (graph.placeholder(name) for name in ("x", "query", "key", "value"))
    sdpa = nn.functional.scaled_dot_product_attention
    graph.output(graph.call_function(sdpa, (query, key, value, *place), {} if place else {"is_causal": True}))
    name = next(node.name for node in graph.nodes if node.target is sdpa)
    site = Attention("attention", name, "key", "x", 6, 6, 6, hides=True)
    editor = Editor(graph)
    with editor.at(site, "prefix", "prefix"):
        Prefix(length=2).rewrite(site, editor)
    graph.lint()
    assert statements(graph)[1].startswith("with_prefix = with_prefix(query, key, value, None, prefix, causal=True)")
    assert statements(graph)[-1].endswith(f"(query, getitem, getitem_1, getitem_2, {rate}is_causal=False)")


def unit(layer: PostNorm | PreNorm) -> Unit:
    graph = fx.Tracer().trace(layer)
    return Unit("Layer", type(layer), graph, tuple(layer.sites(graph).values()), ("layers.0",))


def test_verify_accepts_what_the_methods_do() -> None:
    layer = PostNorm(24, 40, 3)
    graph, editor = edited(layer, PLACEMENTS)
    verify(graph, unit(layer), editor.additions)


def test_verify_finds_what_is_broken() -> None:
    layer = PostNorm(24, 40, 3)
    graph, editor = edited(layer, PLACEMENTS[:1])
    with pytest.raises(Defect, match="it calls value_lora, value_lora_gate, which nothing adds"):
        verify(graph, unit(layer))
    with pytest.raises(Defect, match="it never calls other"):
        verify(graph, unit(layer), {*editor.additions, "other"})
    up, down = (next(node for node in graph.nodes if node.name == name) for name in ("up", "down"))
    down.append(up)
    with pytest.raises(Defect, match="before it has been defined"):
        verify(graph, unit(layer), editor.additions)


def marked(layer: nn.Module) -> fx.Graph:
    """The layer's graph with the feed-forward marked as an inlined module, and the names of its source."""
    graph = fx.Tracer().trace(layer)
    nodes = {node.name: node for node in graph.nodes}
    for name in ("query", "down"):
        nodes[name].meta["names"] = [f"{name}_states"]
    with graph.inserting_after(nodes["down"]):
        graph.call_function(leave, ("mlp", nodes["down"]))
    return graph


@pytest.mark.parametrize("variant", ["houlsby", "pfeiffer", "parallel"])
def test_an_adapter_stands_outside_an_inlined_feed_forward(variant: str) -> None:
    layer = PostNorm(24, 40, 3)
    graph = marked(layer)
    site, editor = layer.sites(graph)["ffn"], Editor(graph)
    with editor.at(site, "ffn_adapter", "adapter"):
        Adapter(variant=variant).rewrite(site, editor)
    graph.lint()
    names = [node.name for node in graph.nodes]
    assert names.index("down") + 1 == names.index("leave") < names.index("ffn_adapter")
    assert "leave = leave(mlp, down)" in statements(graph)


def test_a_changed_value_takes_over_its_name() -> None:
    layer = PostNorm(24, 40, 3)
    graph = marked(layer)
    sites, editor = layer.sites(graph), Editor(graph)
    for method, at in ((LoRA(), "q"), (Adapter(variant="houlsby"), "ffn"), (Prefix(), "attention")):
        with editor.at(sites[at], at, method.method):
            method.rewrite(sites[at], editor)
    found = {node.name: node.meta.get("names") or node.meta.get("name") for node in graph.nodes}
    assert (found["query"], found["added"]) == (None, ["query_states"])
    assert (found["down"], found["added_1"]) == (["down_states"], ["down_states"])
    assert [found[name] for name in ("getitem", "getitem_1", "getitem_2")] == [["key"], ["value"], ["attention_mask"]]
