"""What methods that add nothing have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, final

from peftc.graph.sites import Site, Sublayer
from peftc.methods.base import Cost, Method, ModuleCall, SharedModule
from peftc.methods.gate import Gate

if TYPE_CHECKING:
    from peftc.graph.editor import Editor


class Selective(Method):
    """A method that trains parameters of the base: its file says which, and where it refuses to."""

    @final
    def default_sites(self) -> tuple[str, ...]:
        return ()

    @final
    def gate_refusal(self, gate: Gate, site: Site) -> str | None:
        return (
            f"{self.method} trains parameters of the base and adds nothing that a gate could scale: leave the gate out"
        )

    @final
    def gate_width(self, site: Site) -> int:
        return 0

    @final
    def reads(self, site: Sublayer) -> str | None:
        return None

    def module(self, site: Site) -> ModuleCall | None:
        return None

    @final
    def shared(self, sites: Sequence[Site]) -> SharedModule | None:
        return None

    @final
    def rewrite(self, site: Site, edit: Editor) -> None:
        """Nothing: the parameters are the base's."""

    @final
    def neutral(self, call: ModuleCall) -> ModuleCall | None:
        return call

    @final
    def cost(self, site: Site) -> Cost:
        return Cost(0, 0)

    @final
    def notes(self) -> tuple[str, ...]:
        return ()
