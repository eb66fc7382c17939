"""Learnt keys and values that every query may attend to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from peftc.graph.sites import Attention, Site, Sublayer
from peftc.methods.additive import Additive
from peftc.methods.call import Cost, ModuleCall, SharedModule
from peftc.methods.gate import Gate

if TYPE_CHECKING:
    from peftc.graph.editor import Editor


class Reparametrisation(BaseModel):
    """The MLP that makes the tables while they train: W2 tanh(W1 E + b1) + b2, one for each tower."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hidden: int = Field(512, ge=1, le=65536, description="the width between W1 and W2")


class Prefix(Additive):
    """K = [P_K; K], V = [P_V; V].  Li and Liang 2021, arXiv:2101.00190."""

    identity_at_init: ClassVar[bool] = False  # even zero keys take softmax mass
    paper: ClassVar[str] = "arXiv:2101.00190"
    summary: ClassVar[str] = "learnt keys and values before an attention's own: K = [P_K; K], V = [P_V; V]"

    method: Literal["prefix"] = "prefix"
    length: int = Field(10, ge=1, le=65536, description="how many keys and values are added")
    reparametrize: Reparametrisation | None = Field(None, description="an MLP that makes the tables")

    def default_sites(self) -> tuple[str, ...]:
        return ("attention",)

    def refusal(self, site: Site) -> str | None:
        if not isinstance(site, Attention):
            return f"a prefix joins the keys and values of an attention, not {site.name}"
        if isinstance(site.written, str):
            return f"{site.name} {site.written}: no prefix can join it"
        return None

    def gate_refusal(self, gate: Gate, site: Site) -> str | None:
        if gate.kind == "token":
            return "a token gate has one value per position, but a prefix's keys serve every query: use a constant gate"
        if gate.kind != "constant" and site.causal:
            return f"a {gate.kind} gate of a prefix would see the future in a causal unit: use a constant gate"
        return gate.refusal(site)

    def gate_width(self, site: Site) -> int:
        assert isinstance(site, Attention)
        return site.width

    def reads(self, site: Sublayer) -> str | None:
        return None

    def module(self, site: Site) -> ModuleCall:
        """The tables; or a slice of the trunk, whose `trunk` and `index` the plan knows."""
        assert isinstance(site, Attention)
        if self.reparametrize:
            return ModuleCall("PrefixSlice")
        widths = (("key_width", site.key_width), ("value_width", site.value_width))
        return ModuleCall("Prefix", (("length", self.length), *widths))

    def shared(self, sites: Sequence[Site]) -> SharedModule | None:
        if self.reparametrize is None:
            return None
        attentions = [site for site in sites if isinstance(site, Attention)]
        rows = tuple(width for site in attentions for width in (site.key_width, site.value_width))
        width, hidden, total = attentions[0].width, self.reparametrize.hidden, sum(rows)
        trained = self.length * width + width * hidden + hidden + hidden * total + total
        sizes = (("length", self.length), ("width", width), ("hidden", hidden), ("rows", rows))
        return SharedModule(ModuleCall("PrefixTrunk", sizes), Cost(trained, 0))

    def rewrite(self, site: Site, edit: Editor) -> None:
        assert isinstance(site, Attention)
        gate = edit.gate(on=edit.input(site))
        edit.join(site, edit.call(self.module(site)), gate)

    def neutral(self, call: ModuleCall) -> ModuleCall:
        """Tables of no keys and no values; a trunk needs no more than one hidden number to make them."""
        least = {"length": 0, "hidden": 1}
        return ModuleCall(call.name, tuple((k, least.get(k, v)) for k, v in call.arguments))

    def cost(self, site: Site) -> Cost:
        """L (d_k + d_v), of which nothing trains where a trunk makes the tables."""
        assert isinstance(site, Attention)
        size = self.length * (site.key_width + site.value_width)
        return Cost(0 if self.reparametrize else size, size)

    def notes(self) -> tuple[str, ...]:
        return ("prefix: never the identity at initialisation, its keys take softmax mass even where they are zero",)
