"""The norms of the base."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from peftc.graph.sites import Parameter, Site
from peftc.methods.selective import Selective


class Norm(Selective):
    """Every weight and bias of a LayerNorm or RMSNorm of the base.  Qi et al. 2022, arXiv:2205.12453."""

    paper: ClassVar[str] = "arXiv:2205.12453"
    summary: ClassVar[str] = "trains the weights and biases of the norms of the base"

    method: Literal["norm"] = "norm"

    def refusal(self, site: Site) -> str | None:
        return f"norm trains every norm of the base and takes no sites, so not {site.name} either: leave out at"

    def trains(self, parameters: Mapping[str, Parameter]) -> tuple[str, ...]:
        return tuple(name for name, p in parameters.items() if p.is_norm and not p.head)
