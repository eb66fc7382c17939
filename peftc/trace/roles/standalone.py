"""A linear map or an embedding as a unit of its own, whose forward calls its base's."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace

from torch import fx, nn

from peftc.graph.branches import base_forward
from peftc.graph.sites import Embedding, Projection, Unit
from peftc.trace.record.observed import Call
from peftc.trace.tracer.fingerprint import fingerprint
from peftc.trace.tracer.patches import installed
from peftc.trace.tracer.units import UnitTracer
from peftc.trace.tracer.values import TraceFailure

NODE = base_forward.__name__


def alone(model: nn.Module, paths: Sequence[str], site: Projection | Embedding) -> Unit:
    """A unit whose graph is a call of its base's forward."""
    module = model.get_submodule(paths[0])
    graph = fx.Graph()
    parameter = list(inspect.signature(type(module).forward).parameters)[1]
    given = graph.placeholder(parameter)
    given.meta.update(names=[parameter], guard=())
    node = graph.call_function(base_forward, (given,))
    node.meta.update(names=[], guard=())
    graph.output(node)
    return Unit(type(module).__name__, type(module), graph, (site,), tuple(paths), fingerprint=fingerprint(graph))


def with_graph(unit: Unit, graph: fx.Graph) -> Unit:
    """An embedding whose class does more than look up: its own forward, and the place where it looks up."""
    (look,) = _looks(graph)
    sites = tuple(replace(site, node=look.name) for site in unit.sites if isinstance(site, Embedding))
    return replace(unit, graph=graph, sites=sites, fingerprint=fingerprint(graph))


def looking_up(module: nn.Module, calls: Sequence[Call]) -> fx.Graph | None:
    """The graph of a forward that looks rows of its matrix up once, as one that scales them; None for any other."""
    try:
        with installed() as session:
            graph = UnitTracer(module, frozenset(), calls, session).graph()
    except TraceFailure:
        return None
    looks = _looks(graph)
    for look in looks:
        look.meta["names"] = ["rows"]
    return graph if len(looks) == 1 else None


def _looks(graph: fx.Graph) -> list[fx.Node]:
    return [node for node in graph.nodes if node.target is nn.functional.embedding]
