"""What a graph computes, as one word: units with the same one share a trace."""

from __future__ import annotations

import hashlib
from typing import Any

from torch import fx

from peftc.graph.branches import LiftedFloat, LiftedInt, LiftedStr, given


def fingerprint(graph: fx.Graph) -> str:
    """A hash of what a graph computes: operations and arguments, values read from attributes by their source."""
    order = {node: i for i, node in enumerate(graph.nodes)}

    def text(value: Any) -> str:
        if isinstance(value, fx.Node):
            return f"%{order[value]}"
        if isinstance(value, (LiftedInt, LiftedFloat, LiftedStr)):
            return value.source
        if isinstance(value, (tuple, list)):
            return f"[{','.join(map(text, value))}]"
        if isinstance(value, dict):
            return f"{{{','.join(f'{k}:{text(v)}' for k, v in value.items())}}}"
        if isinstance(value, slice):
            return f"slice{text([value.start, value.stop, value.step])}"
        qualified = getattr(value, "__qualname__", None)
        return repr(value) if qualified is None else f"{value.__module__}.{qualified}"

    rows = (f"{n.op} {text(n.target)} {text(n.args)} {text(given(n))} {n.meta.get('guard', ())}" for n in graph.nodes)
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()
