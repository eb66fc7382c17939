"""The biases of the base."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from peftc.graph.sites import Parameter, Projection, Site
from peftc.methods.selective import Selective


class BitFit(Selective):
    """Every bias of the base but the head's, or those at sites.  Ben Zaken et al. 2021, arXiv:2106.10199."""

    paper: ClassVar[str] = "arXiv:2106.10199"
    summary: ClassVar[str] = "trains the biases of the base, all or those of chosen projections"

    method: Literal["bitfit"] = "bitfit"

    def refusal(self, site: Site) -> str | None:
        if not isinstance(site, Projection):
            return f"bitfit trains the biases of projections, and {site.name} is none"
        if site.bare:
            return f"bitfit knows no bias of {site.name}, whose matrix is a parameter of no module: leave at out"
        if not site.bias:
            return f"bitfit has nothing to train at {site.name}, which has no bias"
        return None

    def trains(self, parameters: Mapping[str, Parameter]) -> tuple[str, ...]:
        return tuple(name for name, p in parameters.items() if p.is_bias and not p.head)
