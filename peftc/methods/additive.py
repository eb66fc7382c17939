"""What methods that add modules answer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from peftc.graph.sites import Site, Sublayer
from peftc.methods.base import Method
from peftc.methods.call import Cost, ModuleCall, SharedModule
from peftc.methods.gate import Gate

if TYPE_CHECKING:
    from peftc.graph.editor import Editor


class Additive(Method):
    """A method that adds a module at each of its sites, and leaves the base's own parameters frozen."""

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
    def module(self, site: Site) -> ModuleCall:
        """What it adds at a site."""

    @abstractmethod
    def shared(self, sites: Sequence[Site]) -> SharedModule | None:
        """What it adds once for all of these sites of one tower."""

    @abstractmethod
    def rewrite(self, site: Site, edit: Editor) -> None:
        """How the graph changes at a site."""

    @abstractmethod
    def neutral(self, call: ModuleCall) -> ModuleCall:
        """The same module without any effect, for the proof: as it starts where that is the identity."""

    @abstractmethod
    def cost(self, site: Site) -> Cost:
        """What it costs at a site, its gate and what is shared left out."""
