"""Learnt scales of keys, values and the feed-forward's inner activation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from peftc.graph.sites import Projection, Site, Sublayer
from peftc.methods.additive import Additive
from peftc.methods.call import Cost, ModuleCall, SharedModule
from peftc.methods.gate import Gate

if TYPE_CHECKING:
    from peftc.graph.editor import Editor


class IA3(Additive):
    """h * l; gated, h * (1 + g (l - 1)).  Liu et al. 2022, arXiv:2205.05638."""

    paper: ClassVar[str] = "arXiv:2205.05638"
    summary: ClassVar[str] = "learnt scales of keys, values and the feed-forward's inner activation: h * l"

    method: Literal["ia3"] = "ia3"

    def default_sites(self) -> tuple[str, ...]:
        return "k", "v", "ffn_down"

    def refusal(self, site: Site) -> str | None:
        if not isinstance(site, Projection):
            return f"ia3 scales what a projection computes or reads, and {site.name} is none"
        if _at_input(site) and site.rows is not None:
            return f"ia3 scales the input of {site.name}, which is fused with other projections that read it too"
        return None

    def gate_refusal(self, gate: Gate, site: Site) -> str | None:
        return gate.refusal(site)

    def gate_width(self, site: Site) -> int:
        assert isinstance(site, Projection)
        return site.inputs

    def reads(self, site: Sublayer) -> str | None:
        return None

    def module(self, site: Site) -> ModuleCall:
        return ModuleCall("IA3", (("width", _width(site)),))

    def shared(self, sites: Sequence[Site]) -> SharedModule | None:
        return None

    def rewrite(self, site: Site, edit: Editor) -> None:
        assert isinstance(site, Projection)
        gate = edit.gate(on=edit.input(site))
        scale = edit.scale_input if _at_input(site) else edit.scale_output
        scale(site, self.module(site), gate)

    def neutral(self, call: ModuleCall) -> ModuleCall:
        return call

    def cost(self, site: Site) -> Cost:
        """d_kv, or f at ffn_down"""
        return Cost(_width(site), _width(site))

    def notes(self) -> tuple[str, ...]:
        return ()


def _at_input(site: Projection) -> bool:
    return site.name.endswith("ffn_down")


def _width(site: Site) -> int:
    assert isinstance(site, Projection)
    return site.inputs if _at_input(site) else site.outputs
