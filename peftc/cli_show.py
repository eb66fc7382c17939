"""What `peftc show` prints: a unit's code after a pass, or how it differs from the base's."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches, unified_diff

from torch import fx, nn

from peftc.compiler import planned
from peftc.emit.statements import forward
from peftc.errors import PeftcError, Problem
from peftc.rewrite import PASSES, rewrite
from peftc.rewrite.program import Body
from peftc.rewrite.simplify import base_like
from peftc.spec.schema import Spec


def shown(spec: Spec, unit: str | None, after: str | None, stage: Callable[[str], None]) -> str:
    """One unit or all; the difference where no pass is named.  PeftcError where there is no such unit or pass."""
    names = [found.name for found in PASSES]
    _known("pass", after, names)
    plan = planned(spec, stage)
    stage("rewriting the units")
    passes = PASSES if after is None else PASSES[: names.index(after) + 1]
    bodies = rewrite(plan, plan.trace, passes).bodies
    _known("unit", unit, [body.name for body in bodies])
    if not bodies:
        return "no unit is rewritten: every forward is the base's own"
    chosen = [body for body in bodies if unit in (None, body.name)]
    return "\n\n".join(_code(body) if after else _difference(body) for body in chosen)


def _known(what: str, name: str | None, names: list[str]) -> None:
    if name is None or name in names:
        return
    near = get_close_matches(name, names, 1)
    there = f"did you mean {near[0]}?" if near else f"there is {', '.join(names) or 'none'}"
    raise PeftcError(Problem(f"no {what} is named {name!r}", hint=there))


def _code(body: Body) -> str:
    return "\n".join((f"class {body.name}:", *_lines(body.unit.base, body.graph)))


def _difference(body: Body) -> str:
    """The whole unit, with what the methods changed marked; the base's side calls the modules that the body calls."""
    before, now = _lines(body.unit.base, base_like(body)), _lines(body.unit.base, body.graph)
    title = f"{body.unit.base.__name__} of the base"
    return "\n".join(unified_diff(before, now, title, body.name, n=len(before), lineterm=""))


def _lines(base: type[nn.Module], graph: fx.Graph) -> list[str]:
    return [f"    {line}".rstrip() for line in forward(base, graph, {base.__module__: "base"}).lines]
