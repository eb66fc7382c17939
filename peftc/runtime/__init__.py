"""The life of a compiled model: attached to a model in memory, or loaded from its folder."""

from peftc.runtime.attach import attach
from peftc.runtime.load import load

__all__ = ["attach", "load"]
