"""What methods that train parameters of the base answer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import final

from peftc.graph.sites import Parameter
from peftc.methods.base import Method


class Selective(Method):
    """A method that trains parameters of the base and adds nothing: it has no sites of its own."""

    @final
    def default_sites(self) -> tuple[str, ...]:
        return ()

    @abstractmethod
    def trains(self, parameters: Mapping[str, Parameter]) -> tuple[str, ...]:
        """Which of these parameters of the base train."""

    @final
    def notes(self) -> tuple[str, ...]:
        return ()
