"""The norms of the base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from peftc.graph.sites import Parameter, Site
from peftc.methods.base import Cost, Method, ModuleCall, SharedModule
from peftc.methods.gate import Gate

if TYPE_CHECKING:
    from peftc.graph.editor import Editor


class Norm(Method):
    """Every weight and bias of a LayerNorm or RMSNorm of the base.  Qi et al. 2022, arXiv:2205.12453."""

    paper: ClassVar[str] = "arXiv:2205.12453"
    summary: ClassVar[str] = "trains the weights and biases of the norms of the base"

    method: Literal["norm"] = "norm"

    def default_sites(self) -> tuple[str, ...]:
        return ()

    def refusal(self, site: Site) -> str | None:
        return f"norm trains every norm of the base and takes no sites, so not {site.name} either: leave out at"

    def gate_refusal(self, gate: Gate, site: Site) -> str | None:
        return "norm trains parameters of the base and adds nothing that a gate could scale: leave the gate out"

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
        return tuple(name for name, p in parameters.items() if p.is_norm and not p.head)
