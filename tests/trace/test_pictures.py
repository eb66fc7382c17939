"""Models of no library that see: of what size, their parameters say."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from peftc.trace.feeds import POINTS, feed
from tests.trace.nets import WIDTH


class Patches(nn.Module):
    """A class and a square of patches, each with its place."""

    def __init__(self, channels: int, patch: int, grid: int) -> None:
        super().__init__()
        self.patch = nn.Conv2d(channels, WIDTH, patch, patch, device="meta")
        self.places = nn.Parameter(torch.empty(1, grid * grid + 1, WIDTH, device="meta"))

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        x = self.patch(picture).flatten(2).transpose(1, 2)
        return nn.functional.pad(x, (0, 0, 1, 0)) + self.places


@pytest.mark.parametrize(("channels", "patch", "grid"), [(3, 8, 4), (1, 7, 4), (3, 16, 14)])
def test_a_picture_has_as_many_patches_as_places(channels: int, patch: int, grid: int) -> None:
    (seen,) = feed(Patches(channels, patch, grid)).inputs
    assert (seen.name, seen.holds) == ("picture", "numbers")
    assert seen.shape(POINTS[1]) == (POINTS[1].batch, channels, patch * grid, patch * grid)
