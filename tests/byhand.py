"""A trace written by hand: tiny blocks with the sites of BERT, or of a causal model, and a head."""

from __future__ import annotations

from dataclasses import replace

from torch import fx, nn

from peftc.graph.sites import Attention, Embedding, Layer, Parameter, Projection, Site, Sublayer, Trace, Unit

WIDTH, INNER = 8, 32


class TinyAttention(nn.Module):
    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH, bias=bias) for _ in range(3))


class TinyLayer(nn.Module):
    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.attention = TinyAttention(bias)
        self.output = nn.Linear(WIDTH, WIDTH, bias=bias)
        self.up = nn.Linear(WIDTH, INNER, bias=bias)
        self.down = nn.Linear(INNER, WIDTH, bias=bias)
        self.norm = nn.LayerNorm(WIDTH, bias=bias)


class TinyTower(nn.Module):
    def __init__(self, count: int, bias: bool) -> None:
        super().__init__()
        self.layer = nn.ModuleList(TinyLayer(bias) for _ in range(count))


class TinyModel(nn.Module):
    """Towers of blocks under an embedding, and a classifier over them."""

    def __init__(self, towers: dict[str, int], bias: bool, head: bool) -> None:
        super().__init__()
        self.words = nn.Embedding(50, WIDTH)
        for tower, count in towers.items():
            self.add_module(tower, TinyTower(count, bias))
        self.pooler = nn.Linear(WIDTH, WIDTH, bias=bias)
        if head:
            self.classifier = nn.Linear(WIDTH, 2)


def by_hand(
    towers: dict[str, int] | None = None, *, causal: bool = False, bias: bool = True, head: bool = True
) -> Trace:
    """The trace of a TinyModel; four encoder layers unless said otherwise."""
    towers = {"encoder": 4} if towers is None else towers
    model = TinyModel(towers, bias, head)
    mask = None if causal else "attention_mask"
    paths = {tower: [f"{tower}.layer.{index}" for index in range(count)] for tower, count in towers.items()}
    blocks = [path for found in paths.values() for path in found]
    attention = _unit(TinyAttention, _attention_sites(bias, causal, mask), [f"{path}.attention" for path in blocks])
    block = _unit(TinyLayer, _block_sites(bias, causal, mask), blocks)
    words = _unit(nn.Embedding, (Embedding("embedding", "", "words", 50, WIDTH),), ["words"])
    layers = tuple(
        Layer(tower, index, path, ((f"{path}.attention", attention), (path, block)))
        for tower, found in paths.items()
        for index, path in enumerate(found)
    )
    modules = tuple(name for name, _ in model.named_modules())
    return Trace(model, (attention, block, words), layers, (("words", words),), _parameters(model), modules)


def fused(trace: Trace) -> Trace:
    """The same with q, k and v as parts of one projection."""
    attention = trace.units[0]
    parts = [
        replace(site, module="query", rows=(i,))
        for i, site in enumerate(attention.sites[:3])
        if isinstance(site, Projection)
    ]
    unit = replace(attention, sites=(*parts, *attention.sites[3:]))
    layers = tuple(replace(layer, units=((layer.units[0][0], unit), layer.units[1])) for layer in trace.layers)
    return replace(trace, units=(unit, *trace.units[1:]), layers=layers)


def _attention_sites(bias: bool, causal: bool, mask: str | None) -> tuple[Site, ...]:
    projections = [
        Projection(name, module, module, module, WIDTH, WIDTH, bias=bias, causal=causal, mask=mask)
        for name, module in (("q", "query"), ("k", "key"), ("v", "value"))
    ]
    widths = (WIDTH, WIDTH, WIDTH)
    return *projections, Attention("attention", "attend", "key", "x", *widths, hides=causal, causal=causal, mask=mask)


def _block_sites(bias: bool, causal: bool, mask: str | None) -> tuple[Site, ...]:
    return (
        Projection("o", "output", "output", "output", WIDTH, WIDTH, bias=bias, causal=causal, mask=mask),
        Sublayer("attention_output", "output", "x", "add", "norm", "x", WIDTH, causal=causal, mask=mask),
        Projection("ffn_up", "up", "up", "up", WIDTH, INNER, bias=bias, causal=causal, mask=mask),
        Projection("ffn_down", "down", "down", "down", INNER, WIDTH, bias=bias, causal=causal, mask=mask),
        Sublayer("ffn", "down", "norm", "add_1", "norm", "norm", WIDTH, causal=causal, mask=mask),
    )


def _unit(base: type[nn.Module], sites: tuple[Site, ...], paths: list[str]) -> Unit:
    graph = fx.Graph()
    x = graph.placeholder("x")
    for site in sites:
        if isinstance(site, Projection):
            x = graph.call_module(site.module, (x if site.name in ("o", "ffn_up", "ffn_down") else _first(graph),))
    return Unit(base.__name__, base, graph, sites, tuple(paths))


def _first(graph: fx.Graph) -> fx.Node:
    first: fx.Node = next(iter(graph.nodes))
    return first


def _parameters(model: nn.Module) -> dict[str, Parameter]:
    return {
        name: Parameter(name, tuple(p.shape), name.endswith("bias"), "norm" in name, name.startswith("classifier"))
        for name, p in model.named_parameters()
    }
