"""The sites of a unit, named by data flow: what the attention reads, what the residual stream takes in."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import networkx as nx
import torch
from torch import fx, nn

from peftc.graph import dataflow
from peftc.graph.branches import SelfReference, lookup
from peftc.graph.sites import Attention, Projection, Site, Sublayer
from peftc.trace.probes import SDPA

ADDS = (operator.add, operator.iadd, torch.add)
MULTIPLIES = (operator.mul, operator.imul, torch.mul)


@dataclass(frozen=True, eq=False)
class View:
    """One traced module: its graph, the data flow of it, and the modules that its calls name."""

    module: nn.Module
    graph: fx.Graph
    flow: nx.DiGraph[fx.Node]

    @classmethod
    def of(cls, module: nn.Module, graph: fx.Graph) -> View:
        return cls(module, graph, dataflow.flow(graph))

    def linears(self) -> list[fx.Node]:
        return [n for n in self.graph.nodes if self.is_linear(n)]

    def called(self, node: fx.Node) -> nn.Module | None:
        return self.module.get_submodule(str(node.target)) if node.op == "call_module" else None

    def is_linear(self, node: fx.Node) -> bool:
        module = self.called(node)
        return module is not None and linear_shape(module, node) is not None


@dataclass(frozen=True)
class AttentionCall:
    """An attention node and its arguments: query, key, value, and the mask where there is one."""

    node: fx.Node
    query: fx.Node
    key: fx.Node
    value: fx.Node
    mask: fx.Node | None
    causal: bool


def linear_shape(module: nn.Module, node: fx.Node) -> tuple[int, int] | None:
    """(inputs, outputs) of a childless module with one matrix that maps the last axis of a float tensor; else None."""
    weight = getattr(module, "weight", None)
    if any(True for _ in module.children()) or not isinstance(weight, torch.Tensor) or weight.dim() != 2 or not node.args:
        return None
    source = node.args[0].meta["value"][0] if isinstance(node.args[0], fx.Node) else None
    result = node.meta["value"][0]
    if not isinstance(source, torch.Tensor) or not isinstance(result, torch.Tensor) or not source.is_floating_point():
        return None
    sizes = (source.shape[-1], result.shape[-1])
    return sizes if tuple(sorted(weight.shape)) == tuple(sorted(sizes)) else None


def attention_calls(view: View) -> list[AttentionCall]:
    """Every call of the attention interface, or of torch's own attention."""
    found = []
    for node in view.graph.nodes:
        if node.target is SDPA:
            named = inspect.signature(_sdpa).bind(*node.args, **node.kwargs).arguments
            causal = named.get("is_causal")
            found.append(_call(view, node, [named[k] for k in ("query", "key", "value")], named.get("attn_mask"), causal))
        elif node.target == "__call__" and isinstance(node.args[0], fx.Node) and node.args[0].target is lookup:
            given = [a for a in node.args[1:] if not isinstance(a, SelfReference)]
            mask = given[3] if len(given) > 3 else node.kwargs.get("attention_mask")
            found.append(_call(view, node, given[:3], mask, node.kwargs.get("is_causal")))
    return found


def _sdpa(
    query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: Any = 0.0, is_causal: Any = False,
    scale: Any = None, enable_gqa: Any = False,
) -> None:  # fmt: skip
    """The signature of torch's attention, which is a builtin without one."""


def _call(view: View, node: fx.Node, given: list[Any], mask: Any, causal: Any) -> AttentionCall:
    is_causal = causal if isinstance(causal, bool) else bool(getattr(view.module, "is_causal", False))
    return AttentionCall(node, given[0], given[1], given[2], mask if isinstance(mask, fx.Node) else None, is_causal)


def attention_sites(view: View) -> list[Site]:
    """q, k, v, (o) and the attention itself, for every attention in a unit; `cross.` where keys come from elsewhere."""
    found: list[Site] = []
    for call in attention_calls(view):
        parts = [_part(view, argument) for argument in (call.query, call.key, call.value)]
        if any(p is None for p in parts):
            continue
        q, k, v = (p for p in parts if p is not None)
        cross = "cross." if _input(view, q.node) is not _input(view, k.node) else ""
        mask = _placeholder(view, call.mask)
        seen = {"causal": call.causal and not cross, "mask": None if cross else mask}
        found += [replace(p, name=cross + n, **seen) for n, p in zip("qkv", (q, k, v), strict=True)]
        found += [replace(o, name=f"{cross}o", **seen) for o in _output(view, call.node)]
        found.append(_attention(view, call, q, cross, seen))
    return found


def _attention(view: View, call: AttentionCall, q: Projection, cross: str, seen: Mapping[str, Any]) -> Attention:
    key, value = (n.meta["value"][0].shape for n in (call.key, call.value))
    x = _input(view, q.node)
    return Attention(
        name=f"{cross}attention", node=call.node.name, key=call.key.name, value=call.value.name,
        mask_value=call.mask.name if call.mask is not None else None, input=x.name, width=_width(x),
        kv_heads=key[1], key_width=key[1] * key[3], value_width=value[1] * value[3], **seen,
    )  # fmt: skip


def _part(view: View, argument: fx.Node) -> Projection | None:
    """The nearest linear before an attention's argument, and the rows of it that arrive."""
    nearest = [argument] if view.is_linear(argument) else dataflow.upstream(view.flow, argument, view.is_linear)
    if len(nearest) != 1:
        return None
    return projection(view, nearest[0], dataflow.path(view.flow, nearest[0], argument))


def projection(view: View, node: fx.Node, way: list[fx.Node]) -> Projection:
    """A linear, or the part of it whose features arrive at the end of a way."""
    module = view.called(node)
    assert module is not None
    sizes = linear_shape(module, node)
    assert sizes is not None
    output, rows = dataflow.features(way, sizes[1]) if len(way) > 1 else (node, tuple(range(sizes[1])))
    whole = len(rows) == sizes[1]
    return Projection(
        name="", module=str(node.target), node=node.name, output=node.name if whole else output.name, inputs=sizes[0],
        outputs=len(rows), rows=None if whole else rows, bias=getattr(module, "bias", None) is not None,
        transposed=not isinstance(module, nn.Linear) and tuple(module.weight.shape) == sizes,
    )  # fmt: skip


def _output(view: View, node: fx.Node) -> Iterator[Projection]:
    linears = dataflow.downstream(view.flow, node, view.is_linear)
    if len(linears) == 1:
        yield projection(view, linears[0], [linears[0]])


def _input(view: View, name: str) -> fx.Node:
    node = find(view.graph, name)
    assert isinstance(node.args[0], fx.Node)
    return node.args[0]


def find(graph: fx.Graph, name: str) -> fx.Node:
    return next(n for n in graph.nodes if n.name == name)


def _width(node: fx.Node) -> int:
    return int(node.meta["value"][0].shape[-1])


def _placeholder(view: View, node: fx.Node | None) -> str | None:
    """The parameter that a mask comes from, where it is handed down unchanged."""
    if node is None:
        return None
    if node.op == "placeholder":
        return str(node.target)
    before = dataflow.upstream(view.flow, node, lambda n: n.op == "placeholder")
    return str(before[0].target) if len(before) == 1 else None


@dataclass(frozen=True, eq=False)
class AttentionSeen:
    """An attention as the block sees it: where it runs, its input, and what its own sites say of it."""

    node: fx.Node
    input: fx.Node
    name: str
    causal: bool
    mask: str | None
    projects: bool


def block_sites(view: View, inner: Mapping[str, tuple[View, list[Site]]], own: list[Site]) -> list[Site]:
    """o, the sublayers, and the feed-forward's projections of a block; `inner` are its attention units by path."""
    seen = [*_inner_attentions(view, inner), *_own_attentions(view, own)]
    found: list[Site] = []
    for attention in seen:
        cross = attention.name.removesuffix("attention")
        facts = {"causal": attention.causal and not cross, "mask": None if cross else attention.mask}
        outputs = [] if attention.projects else list(_output(view, attention.node))
        found += [replace(o, name=f"{cross}o", **facts) for o in outputs]
        sublayer = _sublayer(view, attention.node, attention.input, f"{cross}attention_output")
        found += [replace(sublayer, **facts)] if sublayer else []
    facts = {"causal": any(a.causal for a in seen), "mask": next((a.mask for a in seen if a.mask), None)}
    taken = {s.node for s in (*found, *own) if isinstance(s, Projection)}
    return [*found, *(replace(s, **facts) for s in _feed_forward(view, taken))]


def _inner_attentions(view: View, inner: Mapping[str, tuple[View, list[Site]]]) -> Iterator[AttentionSeen]:
    for node in view.graph.nodes:
        if node.op != "call_module" or str(node.target) not in inner:
            continue
        unit, sites = inner[str(node.target)]
        bound = _bound(unit.module, node)
        for site in sites:
            if not isinstance(site, Attention):
                continue
            x, mask = bound.get(_parameter(unit, site.input)), bound.get(site.mask or "")
            projects = any(s.name.endswith("o") for s in sites if isinstance(s, Projection))
            if isinstance(x, fx.Node):
                yield AttentionSeen(node, x, site.name, site.causal, _placeholder(view, _node(mask)), projects)


def _parameter(view: View, name: str) -> str:
    """The unit's parameter that a value comes from, or ""."""
    return _placeholder(view, find(view.graph, name)) or ""


def _own_attentions(view: View, own: list[Site]) -> Iterator[AttentionSeen]:
    for site in own:
        if isinstance(site, Attention):
            yield AttentionSeen(
                find(view.graph, site.node), find(view.graph, site.input), site.name, site.causal, site.mask, True
            )


def _node(value: Any) -> fx.Node | None:
    return value if isinstance(value, fx.Node) else None


def _bound(module: nn.Module, node: fx.Node) -> Mapping[str, Any]:
    kwargs = {k: v for k, v in node.kwargs.items() if k != "**"}
    return inspect.signature(type(module).forward).bind(module, *node.args, **kwargs).arguments


def _sublayer(view: View, start: fx.Node, x: fx.Node, name: str) -> Sublayer | None:
    """The tensor that leads from `start` into the next residual sum."""
    sums = dataflow.downstream(view.flow, start, lambda n: n.target in ADDS and _two_streams(n))
    if not sums:
        return None
    total = sums[0]
    operands = [a for a in total.args if isinstance(a, fx.Node)]
    reached = nx.descendants(view.flow, start) | {start}
    outputs = [a for a in operands if a in reached]
    if len(operands) != 2 or len(outputs) != 1:
        return None
    output = outputs[0]
    residual = operands[1] if operands[0] is output else operands[0]
    return Sublayer(
        name=name, output=output.name, residual=residual.name, sum=total.name, norm=_post_norm(view, total),
        input=x.name, width=_width(output),
    )  # fmt: skip


def _two_streams(node: fx.Node) -> bool:
    operands = [a for a in node.args if isinstance(a, fx.Node) and dataflow.holds_tensor(a)]
    if len(operands) != 2:
        return False
    first, second = (o.meta["value"][0] for o in operands)
    return bool(first.shape == second.shape) and first.dim() >= 3


def _post_norm(view: View, total: fx.Node) -> str | None:
    """The norm that alone reads a sum, or None."""
    readers = list(view.flow.successors(total))
    if len(readers) != 1 or not is_norm(view.called(readers[0])):
        return None
    return readers[0].name


def is_norm(module: nn.Module | None) -> bool:
    """A childless module whose parameters are vectors and whose class says that it normalises."""
    if module is None or any(True for _ in module.children()):
        return False
    return "norm" in type(module).__name__.lower() and all(p.dim() <= 1 for p in module.parameters())


def _feed_forward(view: View, taken: set[str]) -> list[Site]:
    """ffn_gate, ffn_up, ffn_down and ffn: the last linear that another one feeds, and those that feed it."""
    free = [n for n in view.linears() if n.name not in taken]
    for down in reversed(free):
        feeding = [n for n in dataflow.upstream(view.flow, down, lambda n: view.is_linear(n) or _two_streams_sum(n))]
        linears = [n for n in feeding if n in free]
        if not linears or len(linears) != len(feeding):
            continue
        first = _input(view, linears[0].name)
        projections = _named(view, down, linears)
        sublayer = _sublayer(view, down, first, "ffn")
        return [*projections, *([sublayer] if sublayer else [])]
    return []


def _two_streams_sum(node: fx.Node) -> bool:
    return node.target in ADDS and _two_streams(node)


def _named(view: View, down: fx.Node, linears: list[fx.Node]) -> list[Projection]:
    """up and down; or gate, up and down, where the product of two branches feeds down."""
    last = replace(projection(view, down, [down]), name="ffn_down")
    products = [n for n in dataflow.upstream(view.flow, down, _is_product(view, linears)) if n not in linears]
    if not products:
        return [replace(projection(view, linears[0], [linears[0]]), name="ffn_up"), last]
    branches = [a for a in products[0].args if isinstance(a, fx.Node)]
    parts = [(_branch(view, b, linears), b) for b in branches]
    active = [b for _, b in parts if _is_active(view, b, linears)]
    gate, up = (parts if active and active[0] is branches[0] else reversed(parts)) if active else parts
    return [replace(gate[0], name="ffn_gate"), replace(up[0], name="ffn_up"), last]


def _is_product(view: View, linears: list[fx.Node]) -> Any:
    def check(node: fx.Node) -> bool:
        if node in linears:
            return True
        operands = [a for a in node.args if isinstance(a, fx.Node)]
        made = [b for b in operands if b in linears or dataflow.upstream(view.flow, b, lambda n: n in linears)]
        return node.target in MULTIPLIES and len(made) == 2

    return check


def _branch(view: View, end: fx.Node, linears: list[fx.Node]) -> Projection:
    start = end if end in linears else dataflow.upstream(view.flow, end, lambda n: n in linears)[0]
    return projection(view, start, dataflow.path(view.flow, start, end))


def _is_active(view: View, end: fx.Node, linears: list[fx.Node]) -> bool:
    """Whether a branch of a gated feed-forward passes an activation on its way from the linear."""
    start = end if end in linears else dataflow.upstream(view.flow, end, lambda n: n in linears)[0]
    return any(not dataflow.is_move(n) for n in dataflow.path(view.flow, start, end)[1:])
