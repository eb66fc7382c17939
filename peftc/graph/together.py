"""Several calls of an attention over the same keys, in which parts of one value meet the weights of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from peftc.graph.sites import Attention


@dataclass(frozen=True)
class Together:
    """Calls of an attention that share query, keys and mask: what joins the keys joins `value`, and so all of them.

    `value`: (batch, heads, length, width), of which each call has a part; `readers` take it apart, in order.
    """

    value: str
    readers: tuple[str, ...]
    calls: tuple[str, ...]


def start_of(site: Attention) -> str:
    """The node in front of which keys and values join an attention."""
    if isinstance(site.written, Together):
        return site.written.readers[0]
    softmax: str | None = getattr(site.written, "softmax", None)
    return softmax or site.node
