"""Models that see: of what size, their parameters say, where they are no library's."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from peftc.trace.record.feeds import POINTS, feed
from peftc.trace.record.observed import observe
from tests.trace.nets import WIDTH, Attending


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


class Coarse(nn.Module):
    """Sees a picture in squares, each larger than both pictures that are tried first."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(image_size=32)
        self.up, self.attention = nn.Linear(3, WIDTH), Attending()

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        squares = nn.functional.avg_pool2d(pixel_values, 64, ceil_mode=True).flatten(2).transpose(1, 2)
        attended: torch.Tensor = self.attention(self.up(squares))
        return attended


def test_pictures_grow_until_what_attends_reads_more() -> None:
    model = Coarse().to("meta")
    ((first, second),) = observe(model).calls(model.attention)
    assert (first.named["x"].shape[1], second.named["x"].shape[1]) == (1, 4)
