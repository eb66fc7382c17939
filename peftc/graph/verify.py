"""What must hold between any two passes, of the structure alone."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from torch import fx

from peftc.errors import Defect
from peftc.graph.branches import enter
from peftc.graph.sites import Unit


def verify(graph: fx.Graph, unit: Unit, additions: Collection[str] = ()) -> None:
    """Raise a Defect unless the graph is sound, is still the unit's, and calls every addition and nothing unknown."""
    try:
        graph.lint()
    except (RuntimeError, ValueError) as error:
        raise Defect(f"the graph of {unit.name} is broken: {error}") from error
    complaints = [*_signature(graph, unit), *_calls(graph, unit, additions)]
    if complaints:
        raise Defect(f"the graph of {unit.name} is broken: " + "; ".join(complaints))


def _signature(graph: fx.Graph, unit: Unit) -> Iterator[str]:
    before, after = _placeholders(unit.graph), _placeholders(graph)
    if before != after:
        yield f"its arguments were {before} and are {after}"
    if not any(node.op == "output" for node in graph.nodes):
        yield "it returns nothing"


def _placeholders(graph: fx.Graph) -> list[tuple[str, str]]:
    return [(str(node.target), repr(node.args)) for node in graph.nodes if node.op == "placeholder"]


def _calls(graph: fx.Graph, unit: Unit, additions: Collection[str]) -> Iterator[str]:
    called, own = _modules(graph), _modules(unit.graph)
    folded = {str(node.args[0]) for node in unit.graph.nodes if node.target is enter}
    if unknown := sorted(called - own - folded - set(additions)):
        yield f"it calls {', '.join(unknown)}, which nothing adds"
    if idle := sorted(set(additions) - called):
        yield f"it never calls {', '.join(idle)}"


def _modules(graph: fx.Graph) -> set[str]:
    return {str(node.target) for node in graph.nodes if node.op == "call_module"}
