"""What a plan costs, from closed formulas: no tensor is made and no model is counted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from peftc.errors import Problem, raise_all
from peftc.graph.sites import Layer, Parameter, Projection, Trace, dotted
from peftc.methods.call import Cost
from peftc.plan import PlacedGate, Placement, Plan, Selection

if TYPE_CHECKING:
    from peftc.spec.schema import Spec


@dataclass(frozen=True)
class Row:
    """One thing that trains or is stored.  `part`: module, gate, trunk or head; `layer` counts from 0 in its tower."""

    tower: str | None
    layer: int | None
    site: str | None
    module: str
    method: str
    part: str
    trained: int
    stored: int


@dataclass(frozen=True)
class Budget:
    """Counts of parameters: logical sizes, tied tensors once.  `additions` is what is new, the head left out."""

    base_parameters: int
    head_parameters: int
    additions: Cost
    rows: tuple[Row, ...]

    @cached_property
    def total(self) -> Cost:
        """Everything that trains and everything that is stored, heads included."""
        return _sum(self.rows)

    @cached_property
    def by_method(self) -> dict[str, Cost]:
        """Each method with its gates and trunks; heads belong to none."""
        rows = [row for row in self.rows if row.part != "head"]
        names = dict.fromkeys(row.method for row in rows)
        return {name: _sum(row for row in rows if row.method == name) for name in names}

    def trained_percent_of_base(self) -> float:
        return _percent(self.total.trained, self.base_parameters)

    def stored_percent_of_base(self) -> float:
        return _percent(self.total.stored, self.base_parameters)

    def trained_percent_of_total(self) -> float:
        return _percent(self.total.trained, self.base_parameters + self.additions.trained)

    def stored_percent_of_total(self) -> float:
        """The figure that papers quote: the denominator has what is stored, not what trained."""
        return _percent(self.total.stored, self.base_parameters + self.additions.stored)


def budget(plan: Plan) -> Budget:
    """The count, held against the limits of the spec; past one of them: PeftcError."""
    result = count(plan)
    raise_all(over(plan.spec, result))
    return result


def count(plan: Plan) -> Budget:
    """Rows in the order of the plan: placements, gates, trunks, then what the base itself trains."""
    where = _Where(plan.trace)
    gates = (row for gate in plan.gates for row in _gate(gate))
    added = (*map(_placement, plan.placements), *gates, *_trunks(plan))
    additions = tuple(row for row in added if row.trained or row.stored)
    parameters = plan.trace.parameters.values()
    return Budget(
        base_parameters=sum(p.size for p in parameters if not p.head),
        head_parameters=sum(p.size for p in parameters if p.head),
        additions=_sum(additions),
        rows=(*additions, *_selected(plan, where)),
    )


def over(spec: Spec, found: Budget) -> Iterator[Problem]:
    """A problem for each limit of the spec that a count does not keep."""
    for key in ("trained", "stored"):
        limit = getattr(spec.budget, key)
        amount = getattr(found.total, key)
        if limit is None or limit.allows(amount, found.base_parameters):
            continue
        share = f"{amount:,} parameters are {key}, {_percent(amount, found.base_parameters):.4f}% of the base"
        yield Problem(f"{share}: over the budget of {limit}", spec.origin.place("budget", key))


def _placement(placement: Placement) -> Row:
    cost, site = placement.method.cost(placement.site), placement.site
    module = _at(placement.path, site) if isinstance(site, Projection) else placement.path
    tower, layer = _layer(placement.layer)
    return Row(tower, layer, site.name, module, placement.method.method, "module", cost.trained, cost.stored)


def _gate(gate: PlacedGate) -> Iterator[Row]:
    """One row per entry that a gate serves: a central gate has an equal share of its parameters for each."""
    entries = tuple(dict.fromkeys(member.entry for member in gate.members))
    trained, stored = gate.cost.trained // len(entries), gate.cost.stored // len(entries)
    for entry in entries:
        members = [member for member in gate.members if member.entry == entry]
        tower, layer = _layer(members[0].layer)
        method = members[0].method.method
        yield Row(tower, layer, _site(members), f"{gate.path}.{gate.name}", method, "gate", trained, stored)


def _trunks(plan: Plan) -> Iterator[Row]:
    for shared in plan.shared:
        method, cost, site = shared.members[0].method.method, shared.module.cost, _site(shared.members)
        yield Row(shared.tower, None, site, shared.name, method, "trunk", cost.trained, cost.stored)


def _site(members: Sequence[Placement]) -> str | None:
    """The site that all members have, where there is one."""
    names = {member.site.name for member in members}
    return names.pop() if len(names) == 1 else None


def _selected(plan: Plan, where: _Where) -> Iterator[Row]:
    """One row per selection and module of the base; a parameter that is selected twice counts where it is first."""
    own = {alias: name for name, p in plan.trace.parameters.items() for alias in (name, *p.names)}
    seen: set[str] = set()
    for selection in plan.selections:
        modules: dict[str, list[Parameter]] = {}
        for name in dict.fromkeys(own[name] for name in selection.names):
            if name not in seen:
                modules.setdefault(name.rpartition(".")[0], []).append(plan.trace.parameters[name])
            seen.add(name)
        yield from (_selection(selection, where, module, found) for module, found in modules.items())


def _selection(selection: Selection, where: _Where, module: str, parameters: list[Parameter]) -> Row:
    layer, size = where.layer(module), sum(p.size for p in parameters)
    tower, index = _layer(layer) if layer else (where.tower(module), None)
    part = "head" if all(p.head for p in parameters) else "module"
    return Row(tower, index, where.site(layer, module), module, selection.method, part, size, size)


class _Where:
    """The layer, tower and site of a module of the base, by its path."""

    def __init__(self, trace: Trace) -> None:
        self._layers = {path: layer for layer in trace.layers for path in layer.paths}

    def layer(self, module: str) -> Layer | None:
        parts = module.split(".")
        prefixes = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
        return next((self._layers[prefix] for prefix in prefixes if prefix in self._layers), None)

    def tower(self, module: str) -> str | None:
        """The tower whose layers share the longest path with a module outside every layer."""
        nearest = max(self._layers.values(), key=lambda layer: _shared_parts(layer.path, module), default=None)
        return nearest.tower if nearest else None

    def site(self, layer: Layer | None, module: str) -> str | None:
        """The projection that a module is, where it is one and whole."""
        units = layer.units if layer else ()
        names = [site.name for path, unit in units for site in unit.sites if _is_at(site, path, module)]
        return names[0] if len(names) == 1 else None


def _is_at(site: object, path: str, module: str) -> bool:
    return isinstance(site, Projection) and _at(path, site) == module


def _at(path: str, site: Projection) -> str:
    """The module of a projection; it is its unit itself where it has no name in it."""
    return dotted(path, site.module)


def _shared_parts(left: str, right: str) -> int:
    pairs = zip(left.split("."), right.split("."), strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(left.count("."), right.count(".")) + 1)


def _layer(layer: Layer | None) -> tuple[str | None, int | None]:
    return (layer.tower, layer.index) if layer else (None, None)


def _sum(rows: Iterable[Row]) -> Cost:
    rows = tuple(rows)
    return Cost(sum(row.trained for row in rows), sum(row.stored for row in rows))


def _percent(part: int, whole: int) -> float:
    return 100 * part / whole if whole else 0.0
