"""Layers written by hand, traced by plain fx, with sites by hand: what the methods are tried on without the tracer."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, fx, nn

from peftc import modules
from peftc.graph.editor import Editor, Gating
from peftc.graph.sites import Attention, Projection, Site, Sublayer
from peftc.methods.additive import Additive
from peftc.methods.call import ModuleCall


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    weights = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5
    weights = weights if mask is None else weights + mask
    mixed: Tensor = (weights.softmax(-1) @ value).transpose(1, 2).flatten(2)
    return mixed


fx.wrap("attend")


def heads(x: Tensor, count: int) -> Tensor:
    apart: Tensor = x.unflatten(-1, (count, -1)).transpose(1, 2)
    return apart


class PostNorm(nn.Module):
    """A BERT layer: attention, add, norm, feed-forward, add, norm."""

    def __init__(self, d: int, f: int, count: int, epsilon: float = 1e-12) -> None:
        super().__init__()
        self.count = count
        self.query, self.key, self.value, self.dense = (nn.Linear(d, d) for _ in range(4))
        self.up, self.down = nn.Linear(d, f), nn.Linear(f, d)
        self.norm, self.last = nn.LayerNorm(d, epsilon), nn.LayerNorm(d, epsilon)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        query, key, value = (heads(p(x), self.count) for p in (self.query, self.key, self.value))
        x = self.norm(self.dense(attend(query, key, value, mask)) + x)
        out: Tensor = self.last(self.down(nn.functional.gelu(self.up(x))) + x)
        return out

    def sites(self, graph: fx.Graph) -> dict[str, Site]:
        return _sites(graph, self, ("query", "key", "value"), norms=("norm", "last"), inputs=("x", "norm"))


class PreNorm(nn.Module):
    """A GPT-2 layer with its fused projection: norm, attention, add, norm, feed-forward, add."""

    def __init__(self, d: int, f: int, count: int, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.count = count
        self.qkv, self.dense = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.up, self.down = nn.Linear(d, f), nn.Linear(f, d)
        self.norm, self.last = nn.LayerNorm(d, epsilon), nn.LayerNorm(d, epsilon)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        states = self.qkv(self.norm(x)).chunk(3, dim=-1)
        query, key, value = (heads(states[i], self.count) for i in range(3))
        x = self.dense(attend(query, key, value, mask)) + x
        out: Tensor = self.down(nn.functional.gelu(self.up(self.last(x)), approximate="tanh")) + x
        return out

    def sites(self, graph: fx.Graph) -> dict[str, Site]:
        return _sites(graph, self, ("getitem", "getitem_1", "getitem_2"), norms=(None, None), inputs=("norm", "last"))


def _sites(
    graph: fx.Graph, layer: PostNorm | PreNorm, qkv: Sequence[str], norms: Sequence[str | None], inputs: Sequence[str]
) -> dict[str, Site]:
    nodes = {node.name: node for node in graph.nodes}
    d, f = layer.down.out_features, layer.down.in_features
    fused = "qkv" in nodes
    call = nodes["attend"]
    found: list[Site] = []
    for i, (name, output) in enumerate(zip("qkv", qkv, strict=True)):
        rows = tuple(range(i * d, i * d + d)) if fused else None
        found.append(Projection(name, "qkv" if fused else output, "qkv" if fused else output, output, d, d, rows))
    found += [Projection("o", "dense", "dense", "dense", d, d), Projection("ffn_up", "up", "up", "up", d, f)]
    found += [Projection("ffn_down", "down", "down", "down", f, d)]
    key = call.args[1].name
    found.append(Attention("attention", "attend", key, inputs[0], d, d, d, mask="mask"))
    for name, output, norm, x in zip(("attention_output", "ffn"), ("dense", "down"), norms, inputs, strict=True):
        total = next(iter(nodes[output].users))
        found.append(Sublayer(name, output, total.args[1].name, total.name, norm, x, d, mask="mask"))
    return {site.name: site for site in found}


def rewritten(layer: PostNorm | PreNorm, methods: Sequence[Additive]) -> fx.GraphModule:
    """The layer with these methods at their default sites (or `at`), one gate for each placement."""
    graph = fx.Tracer().trace(layer)
    sites, editor = layer.sites(graph), Editor(graph)
    for method in methods:
        for site in (sites[name] for name in method.at or method.default_sites()):
            name = f"{site.label}_{method.method}"
            with editor.at(site, name, method.method, gating(method, site, name)):
                method.rewrite(site, editor)
    graph.lint()
    for name, call in editor.additions.items():
        layer.add_module(name, built(call))
    return fx.GraphModule(layer, graph)


def gating(method: Additive, site: Site, name: str) -> Gating | None:
    gate = method.gate
    return Gating(f"{name}_gate", gate.call(method.gate_width(site), 1), gate.reads) if gate else None


def built(call: ModuleCall) -> nn.Module:
    module: nn.Module = getattr(modules, call.name)(**dict(call.arguments))
    return module
