"""What `peftc plan` and `peftc budget` print on a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from peftc.graph.sites import Unit
from peftc.plan import PlacedGate, Placement, Plan
from peftc.report.budget import Budget
from peftc.report.render import groups
from peftc.spec.patterns import compress
from peftc.spec.written import expanded


def plan_text(plan: Plan, budget: Budget) -> str:
    """The expanded spec, every placement unit by unit, what the base itself trains, what is inert, the totals."""
    blocks = (expanded(plan.spec), *_units(plan), _shared(plan), _selections(plan), _notes(plan), _totals(budget))
    return "\n\n".join(block.rstrip() for block in blocks if block) + "\n"


def budget_text(budget: Budget) -> str:
    """One line per method, site and run of layers, then the totals."""
    rows = [
        (g.row.method, g.row.part, g.row.site or "", g.where, f"{g.trained:,}", f"{g.stored:,}")
        for g in groups(budget.rows)
    ]
    table = _table([("method", "part", "site", "where", "trained", "stored"), *rows])
    return "\n".join((*table, "", _totals(budget), ""))


def _units(plan: Plan) -> Iterator[str]:
    """Units whose placements read the same are one block, headed by the pattern of their paths."""
    by_path: dict[tuple[str, Unit], list[str]] = {}
    gates = {id(member): gate for gate in plan.gates for member in gate.members}
    for placement in plan.placements:
        line = _placement(placement, gates.get(id(placement)))
        by_path.setdefault((placement.path, placement.unit), []).append(line)
    blocks: dict[tuple[Unit, tuple[str, ...]], list[str]] = {}
    for (path, unit), lines in by_path.items():
        blocks.setdefault((unit, tuple(lines)), []).append(path)
    order = {unit: index for index, (unit, _) in reversed(list(enumerate(blocks)))}
    for (unit, block), paths in sorted(blocks.items(), key=lambda item: order[item[0][0]]):
        where = paths[0] if len(paths) == 1 else ", ".join(compress(paths))
        yield "\n".join((f"{unit.name}: {where}", *block))


def _placement(placement: Placement, gate: PlacedGate | None) -> str:
    cost = placement.method.cost(placement.site)
    gated = f"  gate {gate.name} ({gate.cost.trained:,})" if gate else ""
    count = f"{cost.trained:,}" if cost.trained == cost.stored else f"{cost.trained:,} trained, {cost.stored:,} stored"
    return f"  {placement.method.method} at {placement.site.name}: {placement.name}  {count}{gated}"


def _shared(plan: Plan) -> str:
    return "\n".join(
        f"{s.tower}: {s.name}, shared by {_several(len(s.members), 'placement')}  {s.module.cost.trained:,} trained"
        for s in plan.shared
    )


def _selections(plan: Plan) -> str:
    sizes = {alias: p.size for name, p in plan.trace.parameters.items() for alias in (name, *p.names)}
    return "\n".join(
        f"{s.method}: {_several(len(s.names), 'tensor')} of the base  {sum(sizes[name] for name in s.names):,} trained"
        for s in plan.selections
    )


def _several(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' if count != 1 else ''}"


def _notes(plan: Plan) -> str:
    return "\n".join(f"note: {note}" for note in plan.notes)


def _totals(budget: Budget) -> str:
    total = budget.total
    head = f"  and a head of {budget.head_parameters:,}" if budget.head_parameters else ""
    base = f"base     {budget.base_parameters:>15,}{head}"
    trained = f"trained  {total.trained:>15,}  {budget.trained_percent_of_base():.4f}% of the base"
    stored = f"stored   {total.stored:>15,}  {budget.stored_percent_of_base():.4f}% of the base"
    return "\n".join((base, trained, stored))


def _table(rows: list[tuple[str, ...]]) -> Iterator[str]:
    """Columns as wide as their widest cell; the last two are numbers, to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        words = [cell.ljust(width) for cell, width in zip(row[:-2], widths, strict=False)]
        numbers = [cell.rjust(width) for cell, width in zip(row[-2:], widths[-2:], strict=True)]
        yield "  ".join((*words, *numbers)).rstrip()
