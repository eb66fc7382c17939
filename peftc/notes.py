"""What a plan says beside its placements: what is inert, what is left out, what is other than its name lets expect."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from torch import fx, nn

from peftc.graph.sites import Attention, Embedding, Projection, Site, Sublayer, Trace, dotted, within
from peftc.hints import numbered
from peftc.identity import rank, settings
from peftc.selectors import Entry
from peftc.spec.patterns import compress
from peftc.trace.record.feeds import POINTS

if TYPE_CHECKING:
    from peftc.plan import Placement, Plan

PLAIN = (nn.Module, nn.Sequential, nn.ModuleDict, nn.ModuleList)  # classes that say nothing of what is in them


def of(plan: Plan, entries: Sequence[Entry]) -> tuple[str, ...]:
    """The notes of a plan: of its methods, of its entries, of the base, and of what stands where."""
    placements, trace = plan.placements, plan.trace
    methods = sorted(plan.spec.methods, key=lambda m: (rank(m), settings(m)))
    return (
        *dict.fromkeys(note for method in methods for note in method.notes()),
        *(note for entry in entries for note in entry.notes()),
        *_refused(trace),
        *_changed(trace),
        *_no_layers(trace),
        *_alone(trace),
        *_last_sublayers(placements, trace),
        *_unread(placements, trace),
        *_first_outputs(placements),
        *_shared_experts(placements, trace),
        *_rows(placements),
        *_wider_keys(placements),
        *_trained_below(plan),
    )


def _refused(trace: Trace) -> Iterator[str]:
    """The calls in which the base itself fails, and which the artifact was therefore not traced for."""
    for how in dict.fromkeys(trace.refused.values()):
        calls = "; ".join(call for call, why in trace.refused.items() if why == how)
        yield f"{how}; so the calls that are {calls} were not traced"


def _changed(trace: Trace) -> Iterator[str]:
    """The units that change what they are given in place: emitted code makes it anew, and leaves it to its caller."""
    for unit in dict.fromkeys(unit for _, unit in trace.instances()):
        if names := dict.fromkeys(name for n in unit.graph.nodes for name in n.meta.get("arguments", ())):
            yield f"{unit.name} changes {', '.join(names)} in place: in an artifact its caller's stays as it was"


def _no_layers(trace: Trace) -> Iterator[str]:
    """A note for each list of blocks without attention, which perhaps nothing runs: no layers, and without sites."""
    taken = [path for layer in trace.layers for path in layer.paths]
    for name, module in trace.model.named_modules():
        if not isinstance(module, nn.ModuleList) or any(within(name, path) for path in taken):
            continue
        blocks = {child: f"{name}.{child}" for child, block in module.named_children() if _is_block(block)}
        others = [child for child, path in blocks.items() if not any(within(layer, path) for layer in taken)]
        if others:
            taken += [blocks[child] for child in others]
            unfed = next((f"; {p} was not run: {why}" for p, why in trace.unfed.items() if within(name, p)), "")
            yield f"{name}: no attention was found in {', '.join(others)}: no layers; modules: reaches them{unfed}"


def _alone(trace: Trace) -> Iterator[str]:
    """A note for what is of a class that attends in layers, or that layers are of, and stands by itself in no list."""
    layers = {type(trace.model.get_submodule(layer.path)) for layer in trace.layers}
    units = {unit.base for _, unit in trace.instances() if any(isinstance(site, Attention) for site in unit.sites)}
    kinds = (layers | units).difference(PLAIN)
    lists = [name for name, module in trace.model.named_modules() if isinstance(module, nn.ModuleList)]
    taken = [*lists, *(path for layer in trace.layers for path in layer.paths)]
    for name, module in trace.model.named_modules():
        if type(module) in kinds and not any(within(name, path) or within(path, name) for path in taken):
            taken.append(name)
            yield f"{name}: a {type(module).__name__} in no list of blocks: no layer; modules: reaches it"


def _is_block(module: nn.Module) -> bool:
    """Whether a module is made of others, with a linear map among them."""
    return any(True for _ in module.children()) and any(isinstance(m, nn.Linear) for m in module.modules())


def _last_sublayers(placements: Sequence[Placement], trace: Trace) -> Iterator[str]:
    """The towers without any attention where something stands at `ffn`, which is no feed-forward for certain."""
    attending = {layer.tower for layer in trace.layers if layer.attends}
    used = [p.layer.tower for p in placements if p.layer and p.site.name == "ffn" and p.layer.tower not in attending]
    for tower in dict.fromkeys(used):
        yield f"nothing attends in the {tower}: ffn is the last sublayer of a layer, whatever it mixes"


def _unread(placements: Sequence[Placement], trace: Trace) -> Iterator[str]:
    """The layers where something stands, though the model makes nothing of what they return."""
    used = [p.layer for p in placements if p.layer and p.layer.path in trace.unread]
    for tower in dict.fromkeys(layer.tower for layer in used):
        layers = {layer.index: layer for layer in used if layer.tower == tower}
        yield f"no gradient reaches {numbered(list(layers.values()))}: what stands there never trains"


def _first_outputs(placements: Sequence[Placement]) -> Iterator[str]:
    """The blocks that add several outputs of one name, of which the first alone is a place."""
    several = [p for p in placements if sum(site.name == p.site.name for site in p.unit.sites) > 1]
    for base, name in dict.fromkeys((p.unit.base.__name__, p.site.name) for p in several):
        yield f"{base} attends several times: {name} is what the first attention adds"


def _shared_experts(placements: Sequence[Placement], trace: Trace) -> Iterator[str]:
    """The maps of a feed-forward that are those of an expert which all positions share: the others stay as they are."""
    found: dict[tuple[str, str, str], dict[str, None]] = {}
    for p in placements:
        if p.layer is None or not isinstance(p.site, Projection) or not p.site.name.startswith("ffn"):
            continue
        expert = dotted(p.path, p.site.module).rpartition(".")[0]
        outer = expert.rpartition(".")[0]
        if outer == p.layer.path or not within(outer, p.layer.path):
            continue
        children = trace.model.get_submodule(outer).named_children()
        others = [dotted(outer, name) for name, module in children if dotted(outer, name) != expert and _routed(module)]
        own, *rest = (path.removeprefix(f"{p.layer.path}.") for path in (expert, *others))
        if rest:
            found.setdefault((p.method.method, own, ", ".join(rest)), {})[p.site.name] = None
    for (method, own, beside), names in found.items():
        yield f"{method}: {', '.join(names)} are those of {own} alone; {beside} beside it stays as it is"


def _routed(module: nn.Module) -> bool:
    """Whether a module is several experts: matrices in one parameter, or a list of modules with matrices."""
    stacked = any(p.dim() == 3 for p in module.parameters())
    listed = isinstance(module, nn.ModuleList) and len(module) > 1 and all(map(_is_block, module))
    return stacked or listed


def _rows(placements: Sequence[Placement]) -> Iterator[str]:
    """The units in which an example is several rows, each with a number of its own from a gate that averages."""
    gated = [(p, p.method.gate.kind) for p in placements if p.method.gate and p.method.gate.averages]
    split = ((p.unit.base.__name__, kind) for p, kind in gated if _is_split(p.unit.graph, p.site))
    for base, kind in dict.fromkeys(split):
        yield f"an example is several rows in {base}, such as windows: a {kind} gate is one number for each of them"


def _is_split(graph: fx.Graph, site: Site) -> bool:
    name = site.input if isinstance(site, Attention | Sublayer) else site.node
    values = next((n.meta.get("value", ()) for n in graph.nodes if n.name == name), ())
    pairs = [(len(value), point.batch) for value, point in zip(values, POINTS, strict=False)]
    return bool(pairs) and all(rows > batch and rows % batch == 0 for rows, batch in pairs)


def _wider_keys(placements: Sequence[Placement]) -> Iterator[str]:
    """The attentions whose keys are wider than what k makes of them, where what joins them is as wide as they are."""
    found: dict[str, None] = {}
    for p in placements:
        if isinstance(p.site, Attention):
            name = p.site.name.replace("attention", "k")
            made = sum(site.outputs for site in p.unit.sites if isinstance(site, Projection) and site.name == name)
            if 0 < made < p.site.key_width:
                keys = f"attends with keys of {p.site.key_width} numbers, of which {name} makes {made}"
                found[f"{p.unit.base.__name__} {keys}: {p.method.method} is as wide as all of them"] = None
    yield from found


def _trained_below(plan: Plan) -> Iterator[str]:
    """The weights that train themselves below what is added to them."""
    known = plan.trace.parameters
    trained = {alias for selection in plan.selections for name in selection.names for alias in known[name].names}
    found: dict[str, dict[str, None]] = {}
    for p in plan.placements:
        if isinstance(p.site, Projection | Embedding) and (name := dotted(p.path, p.site.module, "weight")) in trained:
            found.setdefault(p.method.method, {})[name] = None
    for method, names in found.items():
        yield f"{method} stands on what trains whole by itself: {', '.join(compress(names))}"
