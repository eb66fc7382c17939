"""A forward written in a test, traced as a unit of a model would be."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import nn

from peftc.graph.sites import Site
from peftc.trace.roles.attention import attention_sites
from peftc.trace.roles.blocks import block_sites
from peftc.trace.roles.views import View
from peftc.trace.tracer.patches import installed
from peftc.trace.tracer.tracer import Tracer
from peftc.trace.tracer.values import Argument

SIZES = ((2, 5), (3, 7))  # batch and length at the two example points


def seen(module: nn.Module, width: int, *, causal: bool = False, leaves: Collection[str] = ()) -> View:
    """The module's view; its one argument x is (batch, length, width), and `leaves` stay calls."""
    module.to("meta")
    first, second = (torch.empty(*sizes, width, device="meta") for sizes in SIZES)
    with installed() as session:
        tracer = Tracer(module, frozenset(map(module.get_submodule, leaves)))
        with session.tracing(tracer):
            graph = tracer.trace([Argument("x", None, (first, second))])
    return View.of(module, graph, lambda: causal)


def sites(module: nn.Module, width: int, *, causal: bool = False) -> Mapping[str, Site]:
    """The sites of a block that has its attention inside."""
    view = seen(module, width, causal=causal)
    own = attention_sites(view)
    return {site.name: site for site in (*own, *block_sites(view, {}, own))}
