"""The gates of a spec: a number between 0 and 1 that scales what a method adds.  UniPELT, arXiv:2110.07577."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from peftc.graph.sites import Attention, Projection, Site, Sublayer
from peftc.methods.call import Cost, ModuleCall

Kind = Literal["sequence", "masked", "token", "constant", "central"]

CLASSES: dict[Kind, str] = {
    "sequence": "SequenceGate",
    "masked": "MaskedGate",
    "token": "TokenGate",
    "constant": "ConstantGate",
    "central": "CentralGate",
}
READS: dict[Kind, tuple[str, ...]] = {"masked": ("x", "mask"), "constant": ()}


class Gate(BaseModel):
    """How a placement is gated.  `gate: sequence` is short for `{kind: sequence, scope: site}`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind = Field(description="sequence and masked: one number per example; token: per position; constant: learnt")
    scope: Literal["site", "layer"] = Field("site", description="layer: one gate for all sites in a layer")
    shared: str | None = Field(None, description="the name under which central gates share one softmax")

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @property
    def reads(self) -> tuple[str, ...]:
        """What its module is called on: the "x" of what is gated, the unit's "mask"."""
        return READS.get(self.kind, ("x",))

    @property
    def averages(self) -> bool:
        """Whether its value is for an example: an average over the positions."""
        return self.kind not in ("token", "constant")

    @property
    def _mixes(self) -> bool:
        """Whether its value is for an example, or made where batch and length may be two axes."""
        return self.averages or (self.kind == "token" and self.scope == "layer")

    def refusal(self, site: Site) -> str | None:
        """Why no method can be gated so at a site, or None."""
        if isinstance(site, Projection | Sublayer | Attention) and site.flat and self._mixes:
            return (
                f"{site.name} is not known to have batch and length in two axes, where a {self.kind} gate of scope "
                f"{self.scope} cannot tell the examples apart: use a constant gate, or a token gate of scope site"
            )
        if not self.averages:
            return None
        if site.causal:
            return (
                f"a {self.kind} gate averages over the sequence, so {site.name} of a causal unit would see the future: "
                "use a token or a constant gate"
            )
        if self.kind == "masked" and site.mask is None:
            return (
                f"a masked gate needs the attention mask, and none is known to reach {site.name}: use a sequence gate"
            )
        return None

    def call(self, width: int, members: int) -> ModuleCall:
        """The module for an x of this width; members share a central gate's softmax."""
        sizes = {"constant": (), "central": (("width", width), ("members", members))}
        return ModuleCall(CLASSES[self.kind], sizes.get(self.kind, (("width", width),)))

    def cost(self, width: int, members: int) -> Cost:
        """b alone for a constant gate, w and b for the others, one of each for every member of a central one."""
        if self.kind == "constant":
            return Cost(1, 1)
        rows = members if self.kind == "central" else 1
        return Cost(rows * (width + 1), rows * (width + 1))
