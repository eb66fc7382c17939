"""What a graph computes, as one word: units with the same one share a trace."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from torch import fx

from peftc.graph.branches import Lifted, LiftedStr, given


def fingerprint(graph: fx.Graph) -> str:
    """A hash of what a graph computes: operations and arguments, values read from attributes by their source."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    rows = (
        f"{n.op} {' '.join(spelled(x, order) for x in (n.target, n.args, given(n)))} {n.meta.get('guard', ())}"
        for n in graph.nodes
    )
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def spelled(value: Any, order: Mapping[fx.Node, int]) -> str:
    """A target or an argument as text: a node by its number, a value that is read from an attribute by its source."""
    if isinstance(value, fx.Node):
        return f"%{order[value]}"
    if isinstance(value, (Lifted, LiftedStr)):
        return value.source
    if isinstance(value, (tuple, list)):
        return f"[{','.join(spelled(v, order) for v in value)}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{k}:{spelled(v, order)}' for k, v in value.items())}}}"
    if isinstance(value, slice):
        return f"slice{spelled([value.start, value.stop, value.step], order)}"
    qualified = getattr(value, "__qualname__", None)
    return repr(value) if qualified is None else f"{value.__module__}.{qualified}"
