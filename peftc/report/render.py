"""A plan and its budget as JSON for programs, and as Markdown for the artifact."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined

from peftc.spec.layers import ranges
from peftc.spec.written import recorded

if TYPE_CHECKING:
    from peftc.plan import Plan
    from peftc.report.budget import Budget, Row

Json = dict[str, object]
SPEC = "spec.json"  # the spec within an artifact, presets expanded: what a `verify` compiles again


@dataclass(frozen=True)
class Group:
    """Rows that differ in their layer alone: where, each row's cost, and the sums."""

    row: Row
    where: str
    each: int
    trained: int
    stored: int


def budget_record(budget: Budget) -> Json:
    """The content of budget.json."""
    return {
        "schema": 1,
        "base_parameters": budget.base_parameters,
        "added_parameters": budget.additions.trained,
        "trained_parameters": budget.total.trained,
        "stored_parameters": budget.total.stored,
        "head_parameters": budget.head_parameters,
        "trained_percent_of_base": budget.trained_percent_of_base(),
        "trained_percent_of_total": budget.trained_percent_of_total(),
        "stored_percent_of_total": budget.stored_percent_of_total(),
        "by_method": {name: asdict(cost) for name, cost in budget.by_method.items()},
        "rows": [asdict(row) for row in budget.rows],
    }


def budget_markdown(name: str, budget: Budget) -> str:
    """budget.md: the totals, then one line per method, site and run of layers."""
    template = templates("peftc.report").get_template("budget.md.jinja")
    memory = {"gradients": 4 * budget.total.trained, "states": 8 * budget.total.trained}
    return template.render(name=name, budget=budget, groups=groups(budget.rows), memory=memory)


def groups(rows: Iterable[Row]) -> tuple[Group, ...]:
    """Rows outside the layers one by one; those of layers joined where all but the layer and the module agree."""
    joined: dict[Row, list[Row]] = {}
    for row in rows:
        key = row if row.layer is None else replace(row, layer=-1, module="")
        joined.setdefault(key, []).append(row)
    return tuple(_group(members) for members in joined.values())


def _group(rows: list[Row]) -> Group:
    first = rows[0]
    layers = [row.layer for row in rows if row.layer is not None]
    where = f"{first.tower} {ranges(layers)}" if layers else f"`{first.module}`"
    each = max(first.trained, first.stored)
    return Group(first, where, each, sum(row.trained for row in rows), sum(row.stored for row in rows))


def plan_record(plan: Plan, budget: Budget) -> Json:
    """What `peftc plan --json` prints."""
    return {
        "schema": 1,
        "name": plan.spec.name,
        "hash": plan.hash,
        "spec": recorded(plan.spec),
        "placements": [
            {
                "entry": p.entry,
                "method": p.method.method,
                "tower": p.layer.tower if p.layer else None,
                "layer": p.layer.index if p.layer else None,
                "site": p.site.name,
                "unit": p.unit.name,
                "path": p.path,
                "name": p.name,
            }
            for p in plan.placements
        ],
        "gates": [
            {"path": g.path, "name": g.name, "members": [f"{m.path}.{m.name}" for m in g.members]} for g in plan.gates
        ],
        "shared": [
            {"tower": s.tower, "name": s.name, "members": [f"{m.path}.{m.name}" for m in s.members]}
            for s in plan.shared
        ],
        "selections": [asdict(selection) for selection in plan.selections],
        "notes": list(plan.notes),
        "budget": {key: value for key, value in budget_record(budget).items() if key not in ("schema", "rows")},
    }


def as_json(record: object) -> str:
    """JSON as every command and artifact has it."""
    return json.dumps(record, indent=2, ensure_ascii=False) + "\n"


def templates(package: str) -> Environment:
    """The templates of a package: what one names and nobody gives is an error."""
    return Environment(
        loader=PackageLoader(package),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
