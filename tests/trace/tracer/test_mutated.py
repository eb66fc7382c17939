"""What a forward reads of an object that it has changed before, as of a cache."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn

from peftc.trace.tracer.patches import installed
from peftc.trace.tracer.tracer import Tracer
from peftc.trace.tracer.values import Argument

WIDTH = 4
SIZES = ((2, 5), (3, 7))


class Part:
    def __init__(self) -> None:
        self.kept = torch.empty(0, device="meta")


class Store:
    """Keeps the sequences that it is given, one behind another."""

    def __init__(self) -> None:
        self.part = Part()

    def add(self, x: torch.Tensor) -> None:
        self.part.kept = torch.cat([self.part.kept, x], 1) if self.part.kept.dim() > 1 else x


class Rereading(nn.Module):
    """Reads what is kept after it has added to it, by way of a part that it took before."""

    def forward(self, x: torch.Tensor, store: Store) -> torch.Tensor:
        part = store.part
        store.add(x)
        store.add(x)
        result: torch.Tensor = part.kept + 1
        return result


class Looking(nn.Module):
    """Adds, and then looks at a value, which no trace can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor, store: Store) -> torch.Tensor:
        store.add(self.map(x))
        return x * len(range(x.shape[1]))


class Around(nn.Module):
    """Reads what a module has kept that stays a call."""

    def __init__(self) -> None:
        super().__init__()
        self.looking = Looking()

    def forward(self, x: torch.Tensor, store: Store) -> torch.Tensor:
        self.looking(x, store)
        store.add(x)
        result: torch.Tensor = store.part.kept + 1
        return result


@pytest.mark.parametrize("kind", [Rereading, Around])
def test_what_was_kept_is_read(kind: type[nn.Module]) -> None:
    unit, stores = kind().to("meta"), (Store(), Store())
    first, second = (torch.empty(*sizes, WIDTH, device="meta") for sizes in SIZES)
    with installed() as session, torch.device("meta"):
        tracer = Tracer(unit, frozenset())
        with session.tracing(tracer):
            graph = tracer.trace([Argument("x", None, (first, second)), Argument("store", None, stores)])
    (result,) = graph.output_node().args
    assert isinstance(result, fx.Node)
    assert [tuple(value.shape) for value in result.meta["value"]] == [(b, 2 * n, WIDTH) for b, n in SIZES]
    assert all(store.part.kept.dim() == 1 for store in stores)
