"""The biases of the base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from peftc.graph.sites import Parameter, Projection, Site
from peftc.methods.base import Cost, Method, ModuleCall, SharedModule
from peftc.methods.gate import Gate

if TYPE_CHECKING:
    from peftc.graph.editor import Editor


class BitFit(Method):
    """Every bias of the base but the head's, or those at sites.  Ben Zaken et al. 2021, arXiv:2106.10199."""

    paper: ClassVar[str] = "arXiv:2106.10199"
    summary: ClassVar[str] = "trains the biases of the base, all or those of chosen projections"

    method: Literal["bitfit"] = "bitfit"

    def default_sites(self) -> tuple[str, ...]:
        return ()

    def refusal(self, site: Site) -> str | None:
        if not isinstance(site, Projection):
            return f"bitfit trains the biases of projections, and {site.name} is none: name q, k, v, o or ffn_up"
        if not site.bias:
            return f"bitfit has nothing to train at {site.name}, which has no bias"
        return None

    def gate_refusal(self, gate: Gate, site: Site) -> str | None:
        return "bitfit trains parameters of the base and adds nothing that a gate could scale: leave the gate out"

    def gate_width(self, site: Site) -> int:
        return 0

    def module(self, site: Site) -> ModuleCall | None:
        return None

    def shared(self, sites: Sequence[Site]) -> SharedModule | None:
        return None

    def rewrite(self, site: Site, edit: Editor) -> None:
        """Nothing: the parameters are the base's."""

    def neutral(self, call: ModuleCall) -> ModuleCall | None:
        return call

    def cost(self, site: Site) -> Cost:
        return Cost(0, 0)

    def notes(self) -> tuple[str, ...]:
        return ()

    def trains(self, parameters: Mapping[str, Parameter]) -> tuple[str, ...]:
        return tuple(name for name, p in parameters.items() if p.is_bias and not p.head)
