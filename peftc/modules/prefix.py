"""Learnt keys and values before an attention's own."""

from typing import TYPE_CHECKING

import torch
from torch import nn

from peftc.modules.layout import prefix_like

if TYPE_CHECKING:
    from peftc.modules.draw import Draw


class Prefix(nn.Module):
    """() -> the tables P_K and P_V of one attention.  Li and Liang 2021, arXiv:2101.00190.

    key (length, key_width), value (length, value_width).
    """

    def __init__(self, length: int, key_width: int, value_width: int) -> None:
        super().__init__()
        self.key = nn.Parameter(torch.empty(length, key_width))
        self.value = nn.Parameter(torch.empty(length, value_width))

    def forward(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.key, self.value

    def initial(self, name: str, draw: "Draw") -> torch.Tensor:
        return draw.normal(0.02)


class PrefixTrunk(nn.Module):
    """layer -> its P_K and P_V, rows of W2 tanh(W1 E + b1) + b2.  Li and Liang 2021, arXiv:2101.00190.

    E (length, width), W1 (hidden, width), W2 (sum of rows, hidden); rows holds each layer's key and value width in
    turn.  Only the rows of the layer that asks are computed, from one hidden state for a whole forward of the model.
    """

    def __init__(self, length: int, width: int, hidden: int, rows: tuple[int, ...]) -> None:
        super().__init__()
        self.rows = rows
        self.open = False
        self.hidden: torch.Tensor | None = None
        self.E = nn.Parameter(torch.empty(length, width))
        self.W1 = nn.Parameter(torch.empty(hidden, width))
        self.b1 = nn.Parameter(torch.empty(hidden))
        self.W2 = nn.Parameter(torch.empty(sum(rows), hidden))
        self.b2 = nn.Parameter(torch.empty(sum(rows)))

    def once_per_forward(self, model: nn.Module) -> None:
        """Keep the hidden state while the model's forward runs."""
        model.register_forward_pre_hook(self.begin)
        model.register_forward_hook(self.end, always_call=True)

    def begin(self, model: nn.Module, _: object) -> None:
        """Checkpointing runs layers again behind the forward: each makes its own then, or where no module says."""
        marks = [getattr(module, "gradient_checkpointing", None) for module in model.modules()]
        self.open = not model.training or (False in marks and True not in marks)
        self.hidden = None

    def end(self, *_: object) -> None:
        self.open, self.hidden = False, None

    def forward(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        start, widths = sum(self.rows[: 2 * index]), self.rows[2 * index : 2 * index + 2]
        mine = slice(start, start + sum(widths))
        hidden = self.hidden
        if hidden is None or (torch.is_grad_enabled() and not hidden.requires_grad):
            hidden = torch.tanh(nn.functional.linear(self.E, self.W1, self.b1))
            self.hidden = hidden if self.open else None
        key, value = torch.split(nn.functional.linear(hidden, self.W2[mine], self.b2[mine]), list(widths), dim=-1)
        return key, value

    def initial(self, name: str, draw: "Draw") -> torch.Tensor:
        return draw.zeros() if name in ("b1", "b2") else draw.normal(0.02)


class PrefixSlice(nn.Module):
    """() -> the tables of one layer, from a trunk that is registered elsewhere and neither saved nor counted here."""

    def __init__(self, trunk: nn.Module, index: int) -> None:
        super().__init__()
        self.trunk = (trunk,)
        self.index = index

    def forward(self) -> tuple[torch.Tensor, torch.Tensor]:
        key, value = self.trunk[0](self.index)
        return key, value


def with_prefix(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    prefix: tuple[torch.Tensor, torch.Tensor],
    gate: torch.Tensor | None = None,
    causal: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """[P_K; key], [P_V; value], and the mask that lets every query see the prefix; a gate scales P_K and P_V.

    query, key, value (batch, heads, length, width); a mask ends in the keys: bool, 0 and 1, or added to the scores.
    None under causal attention means what torch's `is_causal` means, that query i sees the keys 0 to i: the keys of a
    static cache go on beyond the last query.
    """
    length, queries, keys = prefix[0].shape[0], query.shape[2], key.shape[2]

    def joined(table: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        return torch.cat([prefix_like(table, states, gate), states], dim=2)

    if mask is None and causal and queries > 1:
        blocked = torch.finfo(query.dtype).min
        mask = query.new_full((1, 1, queries, keys), blocked).triu(1)
    if mask is None:
        return joined(prefix[0], key), joined(prefix[1], value), None
    if not isinstance(mask, torch.Tensor):
        raise TypeError(f"a prefix needs a mask that is a tensor or None, not {type(mask).__name__}: use sdpa or eager")
    seen = mask.new_full((*mask.shape[:-1], length), 0 if mask.is_floating_point() else 1)
    return joined(prefix[0], key), joined(prefix[1], value), torch.cat([seen, mask], dim=-1)


def beside_prefix(bias: torch.Tensor, prefix: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """A bias or a mask (..., queries, keys) of what it changes, with zeros for the prefix before them."""
    return nn.functional.pad(bias, (prefix[0].shape[0], 0))
