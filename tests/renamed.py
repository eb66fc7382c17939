"""Two models of no library under words of their own: nothing but the flow of the data says what is what."""

# ruff: noqa: N805 - not even `self` is called so

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedConfig, PreTrainedModel


class LanternConfig(PreTrainedConfig):
    """The sizes of an encoder."""

    model_type = "lantern"

    def __init__(
        self, words: int = 61, breadth: int = 32, storeys: int = 2, eyes: int = 4, attic: int = 48, damp: float = 0.1,
        **rest: Any,
    ) -> None:  # fmt: skip
        self.words, self.breadth, self.storeys, self.eyes = words, breadth, storeys, eyes
        self.attic, self.damp = attic, damp
        super().__init__(**rest)


class Stare(nn.Module):
    """Every place looks at every place that is lit."""

    def __init__(self, sizes: LanternConfig) -> None:
        super().__init__()
        self.eyes = sizes.eyes
        self.ask, self.offer, self.bring = (nn.Linear(sizes.breadth, sizes.breadth) for _ in range(3))

    def forward(self, glow: Tensor, lit: Tensor | None = None) -> Tensor:
        parts = [part(glow) for part in (self.ask, self.offer, self.bring)]
        ask, offer, bring = (part.unflatten(-1, (self.eyes, -1)).transpose(1, 2) for part in parts)
        seen = functional.scaled_dot_product_attention(ask, offer, bring, attn_mask=lit)
        return seen.transpose(1, 2).flatten(2)


class Storey(nn.Module):
    """A stare and an attic, each followed by a calm."""

    def __init__(self, sizes: LanternConfig) -> None:
        super().__init__()
        self.stare = Stare(sizes)
        self.blend = nn.Linear(sizes.breadth, sizes.breadth)
        self.first_calm, self.second_calm = (nn.LayerNorm(sizes.breadth) for _ in range(2))
        self.rise, self.fall = nn.Linear(sizes.breadth, sizes.attic), nn.Linear(sizes.attic, sizes.breadth)
        self.damp = nn.Dropout(sizes.damp)

    def forward(self, glow: Tensor, lit: Tensor | None = None) -> Tensor:
        glow = self.first_calm(glow + self.damp(self.blend(self.stare(glow, lit=lit))))
        calm: Tensor = self.second_calm(self.damp(self.fall(functional.gelu(self.rise(glow)))) + glow)
        return calm


class Lantern(PreTrainedModel):
    """An encoder, the norm after each sum, with a head that tells three things apart."""

    config_class = LanternConfig
    base_model_prefix = "tower"

    def __init__(self, config: LanternConfig) -> None:
        super().__init__(config)
        self.glossary = nn.Embedding(config.words, config.breadth)
        self.tower = nn.ModuleList(Storey(config) for _ in range(config.storeys))
        self.verdict = nn.Linear(config.breadth, 3)
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor]:
        lit = None if attention_mask is None else attention_mask[:, None, None, :].bool()
        glow = self.glossary(input_ids)
        for storey in self.tower:
            glow = storey(glow, lit)
        return (self.verdict(glow),)


@dataclass
class RiverSizes:
    """The sizes of a causal decoder; eyes share keys and values in groups."""

    words: int = 61
    breadth: int = 32
    bends: int = 2
    eyes: int = 4
    shared: int = 2
    delta: int = 40
    pad_token_id: int = 0


class Whirl(nn.Module):
    """Every place looks back; questions, keys and values come out of one map."""

    def __init__(bed, sizes: RiverSizes) -> None:
        super().__init__()
        bed.span = sizes.breadth // sizes.eyes
        bed.widths = [sizes.breadth, sizes.shared * bed.span, sizes.shared * bed.span]
        bed.spring = nn.Linear(sizes.breadth, sum(bed.widths), bias=False)
        bed.mouth = nn.Linear(sizes.breadth, sizes.breadth, bias=False)

    def forward(bed, stream: Tensor, *, banks: Tensor | None) -> Tensor:
        parts = bed.spring(stream).split(bed.widths, dim=-1)
        ask, offer, bring = (part.unflatten(-1, (-1, bed.span)).transpose(1, 2) for part in parts)
        seen = functional.scaled_dot_product_attention(
            ask, offer, bring, attn_mask=banks, is_causal=banks is None, enable_gqa=True
        )
        mouth: Tensor = bed.mouth(seen.transpose(1, 2).flatten(2))
        return mouth


class Rapids(nn.Module):
    """down(silu(gate x) * up x)."""

    def __init__(bed, sizes: RiverSizes) -> None:
        super().__init__()
        bed.sluice, bed.swell = (nn.Linear(sizes.breadth, sizes.delta, bias=False) for _ in range(2))
        bed.ebb = nn.Linear(sizes.delta, sizes.breadth, bias=False)

    def forward(bed, water: Tensor) -> Tensor:
        ebb: Tensor = bed.ebb(functional.silu(bed.sluice(water)) * bed.swell(water))
        return ebb


class Bend(nn.Module):
    """A whirl and rapids, the calm before each."""

    def __init__(bed, sizes: RiverSizes) -> None:
        super().__init__()
        bed.calm, bed.stillness = (nn.RMSNorm(sizes.breadth) for _ in range(2))
        bed.whirl, bed.rapids = Whirl(sizes), Rapids(sizes)

    def forward(bed, stream: Tensor, banks: Tensor | None = None) -> Tensor:
        stream = stream + bed.whirl(bed.calm(stream), banks=banks)
        onward: Tensor = stream + bed.rapids(bed.stillness(stream))
        return onward


class River(nn.Module):
    """A causal decoder that is a plain module, the norm before each sublayer."""

    def __init__(bed, sizes: RiverSizes) -> None:
        super().__init__()
        bed.config = sizes
        bed.glossary = nn.Embedding(sizes.words, sizes.breadth)
        bed.bends = nn.ModuleList(Bend(sizes) for _ in range(sizes.bends))
        bed.still = nn.RMSNorm(sizes.breadth)
        bed.tell = nn.Linear(sizes.breadth, sizes.words, bias=False)

    def forward(bed, input_ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor]:
        stream, banks = bed.glossary(input_ids), None
        if attention_mask is not None:
            itself = torch.eye(input_ids.shape[1], dtype=torch.bool, device=input_ids.device)
            back = torch.ones_like(itself).tril()
            banks = back & attention_mask[:, None, None, :].bool() | itself
        for bend in bed.bends:
            stream = bend(stream, banks)
        return (bed.tell(bed.still(stream)),)
