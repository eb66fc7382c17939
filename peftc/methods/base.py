"""The questions that every method answers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from peftc.graph.sites import Parameter, Site, Sublayer
from peftc.methods.call import Cost, ModuleCall, SharedModule
from peftc.methods.gate import Gate

if TYPE_CHECKING:
    from peftc.graph.editor import Editor

__all__ = ["Cost", "Method", "ModuleCall", "Names", "SharedModule"]


def _listed(value: Any) -> Any:
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_listed, json_schema_input_type=str | tuple[str, ...])]
"""A list of names; one name stands for a list of one."""
_Some = str | Annotated[tuple[str, ...], Field(min_length=1)]
Chosen = Annotated[tuple[str, ...], Field(min_length=1), BeforeValidator(_listed, json_schema_input_type=_Some)]
"""Names that choose something: at least one."""


class Method(BaseModel):
    """One entry of a spec: a method, its settings, and where it goes.  The YAML entry is this object."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    identity_at_init: ClassVar[bool] = True
    paper: ClassVar[str]
    summary: ClassVar[str]

    method: str
    at: Chosen | None = Field(
        None, description="the sites: q, k, v, o, ffn_up, ffn, attention, …; the method's own if left out"
    )
    modules: Chosen | None = Field(None, description="globs over module names, for what is no site of a layer")
    layers: str | int | tuple[int, ...] = Field("all", description='all, 0-5, "0, 3, 7-", last 4, even, odd')
    towers: Chosen | None = Field(None, description="encoder, decoder, …; all if left out")
    gate: Gate | None = Field(None, description="a number between 0 and 1 that scales what the method adds")
    again: bool = Field(False, description="the same method is meant to stand on a site that has it already")

    @abstractmethod
    def default_sites(self) -> tuple[str, ...]:
        """The sites it takes when `at` is left out."""

    @abstractmethod
    def refusal(self, site: Site) -> str | None:
        """Why it cannot attach at a site, or None."""

    @abstractmethod
    def gate_refusal(self, gate: Gate, site: Site) -> str | None:
        """Why what it adds at a site cannot be gated so, or None."""

    @abstractmethod
    def gate_width(self, site: Site) -> int:
        """The width of the x that its gate reads at a site."""

    @abstractmethod
    def reads(self, site: Sublayer) -> str | None:
        """The node of the unit that it reads at a sublayer; None where x is made for it alone, or it stands at none."""

    @abstractmethod
    def module(self, site: Site) -> ModuleCall | None:
        """What it adds at a site."""

    @abstractmethod
    def shared(self, sites: Sequence[Site]) -> SharedModule | None:
        """What it adds once for all of these sites of one tower."""

    @abstractmethod
    def rewrite(self, site: Site, edit: Editor) -> None:
        """How the graph changes at a site."""

    @abstractmethod
    def neutral(self, call: ModuleCall) -> ModuleCall | None:
        """The same module without any effect, for the proof: as it starts where that is the identity; None if none."""

    @abstractmethod
    def cost(self, site: Site) -> Cost:
        """What it costs at a site, its gate and what is shared left out."""

    @abstractmethod
    def trains(self, parameters: Mapping[str, Parameter]) -> tuple[str, ...]:
        """Which of these parameters of the base train."""

    @abstractmethod
    def notes(self) -> tuple[str, ...]:
        """What the plan says about these settings: what is inert, and why."""
