"""The questions that every method answers."""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from peftc.graph.sites import Site
from peftc.methods.gate import Gate


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
    def notes(self) -> tuple[str, ...]:
        """What the plan says about these settings: what is inert, and why."""
