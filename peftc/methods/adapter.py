"""Bottleneck modules after or beside a sublayer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from peftc.graph.sites import Site, Sublayer
from peftc.methods.additive import Additive
from peftc.methods.call import Cost, ModuleCall, SharedModule
from peftc.methods.gate import Gate

if TYPE_CHECKING:
    from peftc.graph.editor import Editor

ALIASES = {"swish": "silu", "gelu_new": "gelu_tanh", "leakyrelu": "leaky_relu"}


def _own_name(value: Any) -> Any:
    return ALIASES.get(value, value) if isinstance(value, str) else value


Activation = Annotated[
    Literal["relu", "gelu", "gelu_tanh", "silu", "tanh", "sigmoid", "leaky_relu", "elu", "mish", "relu6", "selu"],
    BeforeValidator(_own_name),
]


class Adapter(Additive):
    """h + scale (up act(down x)), h the output of a sublayer and a its residual.

    houlsby, arXiv:1902.00751: x = h, after attention and feed-forward.  pfeiffer, arXiv:2005.00247: x = LN(h + a) by
    the sublayer's own norm, or h + a where the norm comes first; after the feed-forward.  parallel, arXiv:2110.04366:
    x = a, beside the feed-forward.
    """

    paper: ClassVar[str] = "arXiv:1902.00751"
    summary: ClassVar[str] = "a bottleneck after a sublayer (houlsby, pfeiffer) or beside the feed-forward (parallel)"

    method: Literal["adapter"] = "adapter"
    variant: Literal["pfeiffer", "houlsby", "parallel"] = Field("pfeiffer", description="where it stands")
    bottleneck: int | None = Field(None, ge=1, le=65536, description="its inner width; or give a reduction")
    reduction: int | None = Field(None, ge=1, le=65536, description="its inner width is width / reduction (16)")
    activation: Activation = Field("relu", description="between down and up")
    dropout: float = Field(0, ge=0, lt=1, description="on the bottleneck, in training")
    scale: float = Field(1, ge=1e-6, le=1e6, description="of what it adds")

    @model_validator(mode="after")
    def _one_width(self) -> Adapter:
        if self.bottleneck is not None and self.reduction is not None:
            raise ValueError("an adapter has either bottleneck or reduction")
        return self

    def inner(self, site: Site) -> int:
        """The width of the bottleneck."""
        assert isinstance(site, Sublayer)
        return self.bottleneck or max(1, site.width // (self.reduction or 16))

    def default_sites(self) -> tuple[str, ...]:
        return ("attention_output", "ffn") if self.variant == "houlsby" else ("ffn",)

    def refusal(self, site: Site) -> str | None:
        if not isinstance(site, Sublayer):
            return f"an adapter stands at the output of a sublayer, not at {site.name}"
        return None

    def gate_refusal(self, gate: Gate, site: Site) -> str | None:
        return gate.refusal(site)

    def gate_width(self, site: Site) -> int:
        assert isinstance(site, Sublayer)
        return site.width

    def reads(self, site: Sublayer) -> str | None:
        return (site.residual or site.input) if self.variant == "parallel" else None

    def module(self, site: Site) -> ModuleCall:
        assert isinstance(site, Sublayer)
        sizes = (("width", site.width), ("bottleneck", self.inner(site)))
        settings = (("activation", self.activation, "relu"), ("dropout", self.dropout, 0), ("scale", self.scale, 1))
        unusual = tuple((name, value) for name, value, default in settings if value != default)
        return ModuleCall("Adapter", (*sizes, *unusual))

    def shared(self, sites: Sequence[Site]) -> SharedModule | None:
        return None

    def rewrite(self, site: Site, edit: Editor) -> None:
        assert isinstance(site, Sublayer)
        x = {"pfeiffer": edit.normed, "houlsby": edit.output, "parallel": edit.residual}[self.variant](site)
        delta = edit.gated(edit.call(self.module(site), x), on=x)
        place = edit.add if self.variant == "parallel" else edit.add_after
        place(site, delta)

    def neutral(self, call: ModuleCall) -> ModuleCall:
        return call

    def cost(self, site: Site) -> Cost:
        """2 d m + m + d"""
        assert isinstance(site, Sublayer)
        size = 2 * site.width * self.inner(site) + self.inner(site) + site.width
        return Cost(size, size)

    def notes(self) -> tuple[str, ...]:
        return ()
