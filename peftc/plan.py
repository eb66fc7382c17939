"""The plan: every method at every site, in canonical order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torch import nn

from peftc import legality
from peftc.attributes import Attributes, numbers
from peftc.errors import Problem, raise_all
from peftc.graph.sites import Attention, Layer, Site, Trace, Unit, within
from peftc.identity import plan_hash, rank, settings
from peftc.methods.additive import Additive
from peftc.methods.base import Method
from peftc.methods.call import Cost, ModuleCall, SharedModule
from peftc.selection import chosen, trained_parts
from peftc.selectors import Entry, Spot, Taken, numbered
from peftc.spec.schema import Spec


@dataclass(frozen=True, eq=False)
class Placement:
    """One method at one site.  `entry` is its index in the spec; `path` the unit's path; `name` its attribute there.

    `layer` is None for a module outside every layer.
    """

    entry: int
    method: Additive
    layer: Layer | None
    path: str
    unit: Unit
    site: Site
    name: str


@dataclass(frozen=True, eq=False)
class PlacedGate:
    """One gate module at `path`.`name`: the placements that it scales, the width of its input, what it costs."""

    name: str
    path: str
    call: ModuleCall
    members: tuple[Placement, ...]
    cost: Cost


@dataclass(frozen=True, eq=False)
class PlacedShared:
    """What several placements of one tower share: an attribute `name` of the model."""

    tower: str
    name: str
    module: SharedModule
    members: tuple[Placement, ...]


@dataclass(frozen=True)
class Selection:
    """Parameters of the base that an entry (or `train:`, where entry is None) keeps trainable."""

    entry: int | None
    method: str
    names: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Plan:
    """Every placement in canonical order.  `notes` say what is inert; `hash` is the identity of the artifact."""

    spec: Spec
    trace: Trace
    placements: tuple[Placement, ...]
    gates: tuple[PlacedGate, ...]
    shared: tuple[PlacedShared, ...]
    selections: tuple[Selection, ...]
    notes: tuple[str, ...]
    hash: str


def resolve(spec: Spec, trace: Trace) -> Plan:
    """The plan of a spec on a base.  Raises PeftcError with every selector and placement that is wrong."""
    entries = [Entry(spec, index, trace) for index in range(len(spec.methods))]
    spots = [(entry, () if entry.selective else entry.spots()) for entry in entries]
    legality.check(spots)
    selections = _selections([entry for entry in entries if entry.selective])
    parts, problems = trained_parts(spec, trace)
    raise_all(_in_file_order([*(p for entry in entries for p in entry.problems), *problems]))
    attributes = Attributes(trace)
    placements = _placements(spots, trace, attributes)
    plan = Plan(
        spec=spec,
        trace=trace,
        placements=placements,
        gates=_gates(placements, attributes),
        shared=_shared(placements, trace, attributes),
        selections=(*selections, *([Selection(None, "train", parts)] if parts else ())),
        notes=(
            *_notes(spec), *(note for entry in entries for note in entry.notes()), *_no_layers(trace), *_alone(trace),
            *_last_sublayers(placements, trace), *_unread(placements, trace), *_first_outputs(placements),
        ),
        hash="",
    )  # fmt: skip
    return replace(plan, hash=plan_hash(plan))


def _in_file_order(problems: Sequence[Problem]) -> list[Problem]:
    return sorted(problems, key=lambda p: (p.place.line, p.place.column) if p.place else (0, 0))


def _selections(entries: Sequence[Entry]) -> tuple[Selection, ...]:
    """What each selective entry trains, in the order of METHODS; complaints go to the entries."""
    found = [Selection(entry.index, entry.method.method, chosen(entry)) for entry in entries]
    taken: dict[tuple[str, str], int] = {}
    for entry, selection in zip(entries, found, strict=True):
        owners = {taken.setdefault((selection.method, name), entry.index) for name in selection.names}
        if owners - {entry.index} and not entry.method.again:
            message = f"{selection.method} trains some of these parameters already, by an entry before"
            entry.refuse(message, "method", hint="give them different layers or sites")
    methods: dict[int | None, Method] = {entry.index: entry.method for entry in entries}
    return tuple(sorted(found, key=lambda s: (rank(methods[s.entry]), s.names)))


def _placements(spots: Sequence[Taken], trace: Trace, attributes: Attributes) -> tuple[Placement, ...]:
    """Canonical order: tower, layer, METHODS, site; what the file's order decides comes last."""
    towers, order = trace.towers(), _site_order(trace)
    flat = [(entry, spot) for entry, found in spots for spot in found]

    def position(item: tuple[Entry, Spot]) -> tuple[int, int, int, int, str, int]:
        entry, spot = item
        tower, layer = (towers.index(spot.layer.tower), spot.layer.index) if spot.layer else (len(towers), 0)
        site = order[spot.path, spot.site.name]
        return tower, layer, rank(entry.method), site, settings(entry.method), entry.index

    def name(item: tuple[Entry, Spot]) -> str:
        entry, spot = item
        return f"{attributes.label(spot.unit, spot.site)}_{entry.method.method}"

    same = sorted(flat, key=lambda item: (settings(item[0].method), item[0].index))
    number = numbers([(item[0].index, item[1].path, name(item)) for item in same])
    return tuple(
        Placement(
            entry=item[0].index, method=item[0].additive, layer=item[1].layer, path=item[1].path, unit=item[1].unit,
            site=item[1].site, name=attributes.at(item[1].path, name(item), number[item[0].index, name(item)]),
        )
        for item in sorted(flat, key=position)
    )  # fmt: skip


def _site_order(trace: Trace) -> dict[tuple[str, str], int]:
    sites = [(path, site.name) for path, unit in trace.instances() for site in unit.sites]
    return {key: index for index, key in enumerate(sites)}


def _gates(placements: Sequence[Placement], attributes: Attributes) -> tuple[PlacedGate, ...]:
    """One gate a placement, or a layer's entry, or a shared name; in the order of their first members."""
    groups: dict[tuple[object, ...], list[Placement]] = {}
    for placement in placements:
        if placement.method.gate:
            groups.setdefault(_gate_key(placement), []).append(placement)
    return tuple(_gate(tuple(members), attributes) for members in groups.values())


def _gate_key(placement: Placement) -> tuple[object, ...]:
    gate = placement.method.gate
    if gate and gate.kind == "central":
        return placement.path, "shared", gate.shared
    if gate and gate.scope == "layer":
        return placement.path, "entry", placement.entry
    return placement.path, "site", placement.entry, placement.site.name


def _gate(members: tuple[Placement, ...], attributes: Attributes) -> PlacedGate:
    first = members[0]
    gate = first.method.gate
    assert gate is not None
    stem = gate.shared if gate.kind == "central" else first.method.method if gate.scope == "layer" else first.name
    width, shares = first.method.gate_width(first.site), len({member.entry for member in members})
    return PlacedGate(
        name=attributes.at(first.path, f"{stem}_gate"),
        path=first.path,
        call=gate.call(width, shares),
        members=members,
        cost=gate.cost(width, shares),
    )


def _shared(placements: Sequence[Placement], trace: Trace, attributes: Attributes) -> tuple[PlacedShared, ...]:
    """What each entry adds once to a tower, as attributes of the model."""
    groups: dict[tuple[str, int], list[Placement]] = {}
    for placement in placements:
        groups.setdefault((placement.layer.tower if placement.layer else "", placement.entry), []).append(placement)
    several = len(trace.towers()) > 1
    found = []
    for (tower, _), members in groups.items():
        module = members[0].method.shared([member.site for member in members])
        if module is not None:
            name = f"{members[0].method.method}_trunk" + (f"_{tower}" if several and tower else "")
            found.append(PlacedShared(tower, attributes.at("", name), module, tuple(members)))
    return tuple(found)


def _notes(spec: Spec) -> tuple[str, ...]:
    methods = sorted(spec.methods, key=lambda m: (rank(m), settings(m)))
    return tuple(dict.fromkeys(note for method in methods for note in method.notes()))


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
    layers = [(layer.path, type(trace.model.get_submodule(layer.path))) for layer in trace.layers]
    units = {unit.base for _, unit in trace.instances() if any(isinstance(site, Attention) for site in unit.sites)}
    kinds = {kind for _, kind in layers if not issubclass(kind, nn.Sequential | nn.ModuleDict | nn.ModuleList)} | units
    lists = [name for name, module in trace.model.named_modules() if isinstance(module, nn.ModuleList)]
    taken = [*lists, *(path for layer in trace.layers for path in layer.paths)]
    for name, module in trace.model.named_modules():
        if type(module) in kinds and not any(within(name, path) or within(path, name) for path in taken):
            taken.append(name)
            yield f"{name}: a {type(module).__name__} in no list of blocks: no layer; modules: reaches it"


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
        yield f"no gradient reaches {numbered(list(layers.values()))} of the {tower}: what stands there never trains"


def _first_outputs(placements: Sequence[Placement]) -> Iterator[str]:
    """The blocks that add several outputs of one name, of which the first alone is a place."""
    several = [p for p in placements if sum(site.name == p.site.name for site in p.unit.sites) > 1]
    for base, name in dict.fromkeys((p.unit.base.__name__, p.site.name) for p in several):
        yield f"{base} attends several times: {name} is what the first attention adds"


def _is_block(module: nn.Module) -> bool:
    """Whether a module is made of others, with a linear map among them."""
    return any(True for _ in module.children()) and any(isinstance(m, nn.Linear) for m in module.modules())
