"""Traces by hand: the sizes of models that papers count, with no model built."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx, nn

from peftc.graph.sites import Attention, Layer, Parameter, Projection, Site, Sublayer, Trace, Unit


def bert(layers: int = 12, width: int = 768, inner: int = 3072, labels: int = 0) -> Trace:
    """BertModel with the vocabulary of bert-base-uncased, below a classification head where there are labels."""
    sites = (*_attention(width, width, "query", "key", "value"), *_output(width, "dense"))
    block = (*_feed_forward(width, inner), _sublayer("ffn", width, norm="norm"))
    attention = _unit("BertSelfAttention", *sites)
    layer = _unit("BertLayer", _sublayer("attention_output", width, norm="norm"), *block)
    found = tuple(
        _layer("encoder", f"encoder.layer.{i}", i, ("attention.self", attention), ("", layer)) for i in range(layers)
    )
    parameters = (*_bert_parameters(layers, width, inner), *_linear("classifier", width, labels, head=True))
    return _trace(found, (p for p in parameters if p.size))


def decoder(layers: int, width: int, base: int, tower: str = "decoder") -> Trace:
    """A decoder of which only the width of its attention and its total size matter."""
    unit = _unit("Attention", *_attention(width, width, "q", "k", "v"))
    found = tuple(_layer(tower, f"h.{i}", i, ("attn", unit)) for i in range(layers))
    return _trace(found, [Parameter("everything", (base,), False, False, False)])


def _trace(layers: tuple[Layer, ...], parameters: Iterator[Parameter] | list[Parameter]) -> Trace:
    units = tuple(dict.fromkeys(unit for layer in layers for _, unit in layer.units))
    by_name = {p.name: p for p in parameters}
    paths = (*(name.rpartition(".")[0] for name in by_name), *(path for layer in layers for path, _ in layer.units))
    modules = tuple(path for path in dict.fromkeys(paths) if path)
    return Trace(_skeleton(modules), units, layers, (), by_name, modules)


def _skeleton(paths: tuple[str, ...]) -> nn.Module:
    """Modules without parameters at these paths."""
    root = nn.Module()
    for path in paths:
        at = root
        for name in path.split("."):
            at._modules.setdefault(name, nn.Module())
            at = at.get_submodule(name)
    return root


def _unit(name: str, *sites: Site) -> Unit:
    graph = fx.Graph()
    x = graph.placeholder("x")
    for site in sites:
        if isinstance(site, Projection):
            graph.call_module(site.module, (x,))
    return Unit(name, nn.Module, graph, sites, ())


def _layer(tower: str, path: str, index: int, *units: tuple[str, Unit]) -> Layer:
    return Layer(tower, index, path, tuple((f"{path}.{inner}".rstrip("."), unit) for inner, unit in units))


def _projection(name: str, module: str, inputs: int, outputs: int) -> Projection:
    node = module.replace(".", "_")
    return Projection(name, module, node, node, inputs, outputs, bias=True)


def _attention(width: int, keys: int, *modules: str) -> tuple[Site, ...]:
    q, k, v = modules
    attention = Attention("attention", "attend", "key", "x", width, keys, keys)
    widths = (("q", q, width), ("k", k, keys), ("v", v, keys))
    return (*(_projection(name, module, width, outputs) for name, module, outputs in widths), attention)


def _output(width: int, module: str) -> tuple[Site, ...]:
    return (_projection("o", module, width, width),)


def _feed_forward(width: int, inner: int) -> tuple[Site, ...]:
    up = _projection("ffn_up", "intermediate.dense", width, inner)
    return up, _projection("ffn_down", "output.dense", inner, width)


def _sublayer(name: str, width: int, norm: str | None) -> Sublayer:
    return Sublayer(name, f"{name}_out", "residual", f"{name}_sum", norm, "x", width)


def _bert_parameters(layers: int, width: int, inner: int) -> Iterator[Parameter]:
    for name, count in (("word", 30522), ("position", 512), ("token_type", 2)):
        yield Parameter(f"embeddings.{name}_embeddings.weight", (count, width), False, False, False)
    yield from _norm("embeddings.LayerNorm", width)
    for i in range(layers):
        at = f"encoder.layer.{i}"
        for name in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            yield from _linear(f"{at}.{name}", width, width)
        yield from _norm(f"{at}.attention.output.LayerNorm", width)
        yield from _linear(f"{at}.intermediate.dense", width, inner)
        yield from _linear(f"{at}.output.dense", inner, width)
        yield from _norm(f"{at}.output.LayerNorm", width)
    yield from _linear("pooler.dense", width, width)


def _linear(path: str, inputs: int, outputs: int, head: bool = False) -> Iterator[Parameter]:
    yield Parameter(f"{path}.weight", (outputs, inputs), False, False, head)
    yield Parameter(f"{path}.bias", (outputs,), True, False, head)


def _norm(path: str, width: int) -> Iterator[Parameter]:
    yield Parameter(f"{path}.weight", (width,), False, True, False)
    yield Parameter(f"{path}.bias", (width,), True, True, False)
