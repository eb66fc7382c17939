"""A linear map or an embedding as a unit of its own, whose forward calls its base's."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from torch import fx, nn

from peftc.graph.branches import base_forward
from peftc.graph.sites import Embedding, Projection, Unit
from peftc.trace.fingerprint import fingerprint

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
