"""README.md: the model card."""

from __future__ import annotations

from peftc.emit.module import Heading, listed
from peftc.plan import Placement, Plan
from peftc.report.render import templates
from peftc.spec.layers import ranges
from peftc.trace.record.model import auto_class


def card(
    plan: Plan, module: str, auto_classes: tuple[str, ...], heading: Heading, proved: tuple[str, ...], budget: str
) -> str:
    """The model card of an artifact."""
    spec, template = plan.spec, templates("peftc.emit").get_template("README.md.jinja")
    wanted = auto_class(spec.base.task).__name__
    return template.render(
        name=spec.name,
        folder=f"generated/{spec.name}",
        base=f"`{spec.base.model}`" if spec.base.model else "a base with the config beside",
        example=spec.base.model or "path/to/base",
        model=type(plan.trace.model).__name__,
        module=module,
        auto=wanted if wanted in auto_classes else next(iter(auto_classes), None),
        methods=listed(heading.methods) or "no method",
        trained=f"{heading.trained:,}",
        stored=f"{heading.stored:,}",
        rows=rows(plan),
        notes=plan.notes,
        proved=proved,
        budget="\n".join(budget.splitlines()[1:]).strip(),
    )


def rows(plan: Plan) -> tuple[tuple[str, str, str, str], ...]:
    """(tower and layers, site, method, gate): placements that differ in their layer alone share a row."""
    joined: dict[tuple[str, str, str, str], list[int]] = {}
    for placement in plan.placements:
        key = (_tower(placement), placement.site.name, placement.method.method, _gate(placement))
        joined.setdefault(key, []).extend([] if placement.layer is None else [placement.layer.index])
    return tuple((_where(tower, layers), site, method, gate) for (tower, site, method, gate), layers in joined.items())


def _gate(placement: Placement) -> str:
    return placement.method.gate.kind if placement.method.gate else ""


def _tower(placement: Placement) -> str:
    return placement.path if placement.layer is None else placement.layer.tower


def _where(tower: str, layers: list[int]) -> str:
    return f"{tower} {ranges(layers)}" if layers else tower
