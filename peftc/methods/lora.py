"""Low-rank deltas of linear maps and embeddings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from peftc.graph.sites import Attention, Embedding, Projection, Site, Sublayer
from peftc.methods.additive import Additive
from peftc.methods.call import Cost, ModuleCall, SharedModule
from peftc.methods.gate import Gate

if TYPE_CHECKING:
    from peftc.graph.editor import Editor


class LoRA(Additive):
    """W x + (alpha / rank) B A x.  Hu et al. 2021, arXiv:2106.09685; `scaling: sqrt`, arXiv:2312.03732."""

    paper: ClassVar[str] = "arXiv:2106.09685"
    summary: ClassVar[str] = "a low-rank delta of a linear map: W x + (alpha / rank) B A x"

    method: Literal["lora"] = "lora"
    rank: int = Field(8, ge=1, le=65536, description="rows of A and columns of B")
    alpha: float = Field(16, ge=1e-6, le=1e6, description="the scale is alpha / rank; inert under a gate")
    dropout: float = Field(0, ge=0, lt=1, description="on the delta's input, in training")
    scaling: Literal["rank", "sqrt"] = Field("rank", description="sqrt: alpha / sqrt(rank), as in rsLoRA")

    @property
    def scale(self) -> float:
        """What B A x is multiplied by; a gate takes its place."""
        if self.gate is not None:
            return 1.0
        return self.alpha / (self.rank if self.scaling == "rank" else math.sqrt(self.rank))

    def default_sites(self) -> tuple[str, ...]:
        return "q", "v"

    def refusal(self, site: Site) -> str | None:
        if isinstance(site, Attention | Sublayer):
            return f"lora changes linear maps and embeddings, and {site.name} is neither"
        if isinstance(site, Embedding) and self.dropout:
            return f"{site.name} reads token ids, which lora cannot drop: leave its dropout out"
        return None

    def gate_refusal(self, gate: Gate, site: Site) -> str | None:
        if isinstance(site, Embedding) and gate.kind != "constant":
            return f"a {gate.kind} gate reads vectors, and {site.name} reads token ids: use a constant gate"
        return gate.refusal(site)

    def gate_width(self, site: Site) -> int:
        assert isinstance(site, Projection | Embedding)
        return site.inputs if isinstance(site, Projection) else site.width

    def reads(self, site: Sublayer) -> str | None:
        return None

    def module(self, site: Site) -> ModuleCall:
        settings = (("scale", self.scale, 1), ("dropout", self.dropout, 0))
        unusual = tuple((name, value) for name, value, default in settings if value != default)
        if isinstance(site, Embedding):
            table = (("count", site.count), ("width", site.width))
            return ModuleCall("LoRAEmbedding", (*table, ("rank", self.rank), *unusual))
        assert isinstance(site, Projection)
        ends = (("inputs", site.inputs), ("outputs", site.outputs))
        return ModuleCall("LoRA", (*ends, ("rank", self.rank), *unusual))

    def shared(self, sites: Sequence[Site]) -> SharedModule | None:
        return None

    def rewrite(self, site: Site, edit: Editor) -> None:
        assert isinstance(site, Projection | Embedding)
        x = edit.input(site)
        delta = edit.call(self.module(site), x)
        edit.add(site, edit.gated(delta, on=x))

    def neutral(self, call: ModuleCall) -> ModuleCall:
        return call

    def cost(self, site: Site) -> Cost:
        """rank (in + out)"""
        assert isinstance(site, Projection | Embedding)
        ends = (site.inputs, site.outputs) if isinstance(site, Projection) else (site.count, site.width)
        return Cost(self.rank * sum(ends), self.rank * sum(ends))

    def notes(self) -> tuple[str, ...]:
        return ("lora: where a gate stands, alpha and scaling are inert: it replaces them",) if self.gate else ()
