"""The identity of a plan: what it does to which base, whatever the order and the file it was written in."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from peftc.methods import METHODS
from peftc.methods.base import Method
from peftc.spec.document import Plain

if TYPE_CHECKING:
    from peftc.graph.sites import Trace
    from peftc.plan import Placement, Plan

_CHOICE = {"at", "modules", "layers", "towers", "again"}


def rank(method: Method) -> int:
    """A method's position in METHODS."""
    return METHODS.index(type(method))


def settings(method: Method) -> str:
    """What a method does at a site, as canonical JSON: its settings without the words that chose the site."""
    return canonical(method.model_dump(mode="json", exclude=_CHOICE))


def _whole(value: Plain) -> Plain:
    """16.0 as 16: equal settings, however they were written."""
    if isinstance(value, dict):
        return {key: _whole(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def canonical(value: Plain) -> str:
    """JSON with sorted keys and no spaces: equal values, equal text."""
    return json.dumps(_whole(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def plan_hash(plan: Plan) -> str:
    """sha256 of the base as it is built, seed, dtype, placements and selections."""
    described: dict[str, Plain] = {
        "base": _base(plan),
        "seed": plan.spec.seed,
        "dtype": plan.spec.dtype,
        "placements": [_placement(placement) for placement in plan.placements],
        "gates": [[gate.path, gate.name, *(member.name for member in gate.members)] for gate in plan.gates],
        "shared": [[part.tower, part.name, *(f"{m.path}.{m.name}" for m in part.members)] for part in plan.shared],
        "selections": [{"method": s.method, "names": list(s.names)} for s in plan.selections],
    }
    return hashlib.sha256(canonical(described).encode()).hexdigest()


def _base(plan: Plan) -> Plain:
    """The base by what it is, not by where it lies: class, task, config and shapes."""
    base = plan.spec.base
    config: Plain = json.loads(json.dumps(base.config))
    return {
        "class": type(plan.trace.model).__name__,
        "task": base.task,
        "revision": base.revision,
        "config": config,
        "parameters": _parameters(plan.trace),
    }


def _parameters(trace: Trace) -> Plain:
    return [[name, list(parameter.shape)] for name, parameter in sorted(trace.parameters.items())]


def _placement(placement: Placement) -> Plain:
    layer = placement.layer
    return {
        "tower": layer.tower if layer else None,
        "layer": layer.index if layer else None,
        "path": placement.path,
        "site": placement.site.name,
        "name": placement.name,
        "method": json.loads(settings(placement.method)),
    }
