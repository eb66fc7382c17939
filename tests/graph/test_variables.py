"""What an edit calls the values that it makes."""

from __future__ import annotations

import torch
from torch import fx, nn

from peftc.graph.editor import Editor
from peftc.graph.sites import Projection
from peftc.methods.ia3 import IA3


class Listed(nn.Module):
    """A feed-forward whose modules have numbers for names."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.parts(x)
        return found


def test_no_variable_is_a_number() -> None:
    graph = fx.Tracer().trace(Listed())
    editor, site = Editor(graph), Projection("ffn_down", "parts.2", "parts_2", "parts_2", 12, 8)
    with editor.at(site, "ffn_down_ia3", "ia3"):
        IA3().rewrite(site, editor)
    names = [name for node in graph.nodes for name in node.meta.get("names", ())]
    assert names and all(name.isidentifier() for name in names)
