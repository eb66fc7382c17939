"""README.md: the model card."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined

from peftc.emit.module import Heading
from peftc.emit.patterns import ranges
from peftc.plan import Placement, Plan


def card(plan: Plan, module: str, auto_classes: tuple[str, ...], heading: Heading, budget: str) -> str:
    """The model card of an artifact."""
    environment = Environment(
        loader=PackageLoader("peftc.emit"),
        undefined=StrictUndefined,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    spec = plan.spec
    return environment.get_template("README.md.jinja").render(
        name=spec.name,
        folder=f"generated/{spec.name}",
        base=spec.base.model or "a base of the config beside",
        example=spec.base.model or "path/to/base",
        model=type(plan.trace.model).__name__,
        module=module,
        auto=auto_classes[0] if auto_classes else None,
        methods=", ".join(heading.methods) or "no method",
        trained=f"{heading.trained:,}",
        stored=f"{heading.stored:,}",
        rows=rows(plan),
        notes=plan.notes,
        budget="\n".join(budget.splitlines()[1:]).strip(),
    )


def rows(plan: Plan) -> tuple[tuple[str, str, str, str], ...]:
    """(tower and layers, site, method, gate): placements that differ in their layer alone share a row."""
    gates = {id(member): gate.call.name for gate in plan.gates for member in gate.members}
    joined: dict[tuple[str, str, str, str], list[int]] = {}
    for placement in plan.placements:
        key = (_tower(placement), placement.site.name, placement.method.method, gates.get(id(placement), ""))
        joined.setdefault(key, []).extend([] if placement.layer is None else [placement.layer.index])
    return tuple((_where(tower, layers), site, method, gate) for (tower, site, method, gate), layers in joined.items())


def _tower(placement: Placement) -> str:
    return placement.path if placement.layer is None else placement.layer.tower


def _where(tower: str, layers: list[int]) -> str:
    return f"{tower} {ranges(layers).replace(',', ', ')}" if layers else tower
