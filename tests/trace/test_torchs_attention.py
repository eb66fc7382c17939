"""nn.MultiheadAttention, whose projections are rows of one parameter, against torch's own code with other numbers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import peftc
from peftc.errors import PeftcError
from tests.laws import perturbed, spec
from tests.trace.nets import IDS, WIDTH

REAL = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


class Attending(nn.Module):
    """A residual attention of torch's, called as `options` say, and a feed-forward."""

    def __init__(self, options: dict[str, Any], **given: Any) -> None:
        super().__init__()
        self.attention, self.options = nn.MultiheadAttention(WIDTH, 2, dropout=0.1, **given), options
        self.up, self.down = nn.Linear(WIDTH, 12), nn.Linear(12, WIDTH)

    def forward(self, x: torch.Tensor, padding: torch.Tensor | None = None) -> torch.Tensor:
        x = x + self.attention(x, x, x, key_padding_mask=padding, **self.options)[0]
        result: torch.Tensor = x + self.down(torch.relu(self.up(x)))
        return result


class Stack(nn.Module):
    def __init__(self, options: dict[str, Any], **given: Any) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, WIDTH)
        self.blocks = nn.ModuleList(Attending(options, **given) for _ in range(2))

    def forward(self, ids: torch.Tensor, real: torch.Tensor | None = None) -> torch.Tensor:
        x: torch.Tensor = self.embedding(ids)
        for block in self.blocks:
            x = block(x, None if real is None else real == 0)
        return x


def stack(weights: bool, **given: Any) -> Stack:
    torch.manual_seed(0)
    base = Stack({"need_weights": weights}, batch_first=True, **given).eval()
    for block in base.blocks:
        assert isinstance(block, Attending)
        if block.attention.in_proj_bias is not None:
            nn.init.normal_(block.attention.in_proj_bias)
    return base


def changed(base: nn.Module, *entries: dict[str, Any]) -> Any:
    return perturbed(peftc.attach(copy.deepcopy(base), spec([*entries])))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("real", [None, REAL])
def test_parts_are_rows_of_its_parameter(weights: bool, bias: bool, real: torch.Tensor | None) -> None:
    """LoRA on q, v and o and scales of k and v, against torch's own attention on matrices that hold them."""
    base = stack(weights, bias=bias)
    lora = {"method": "lora", "at": ["q", "v", "o"], "rank": 2, "alpha": 4}
    model = changed(base, lora, {"method": "ia3", "at": ["k", "v"]})
    by_hand = copy.deepcopy(base)
    with torch.no_grad():
        for theirs, block in zip(by_hand.blocks, model.blocks, strict=True):
            assert isinstance(theirs, Attending)
            held, own = theirs.attention, block.attention
            query, key, value = held.in_proj_weight.chunk(3)
            query += 2 * own.q_lora.B @ own.q_lora.A
            value += 2 * own.v_lora.B @ own.v_lora.A
            held.out_proj.weight += 2 * own.out_proj_lora.B @ own.out_proj_lora.A
            key *= own.k_ia3.l[:, None]
            value *= own.v_ia3.l[:, None]
            if bias:
                _, key_bias, value_bias = held.in_proj_bias.chunk(3)
                key_bias *= own.k_ia3.l
                value_bias *= own.v_ia3.l
    torch.testing.assert_close(model(IDS, real), by_hand(IDS, real))
    assert not torch.allclose(model(IDS, real), base(IDS, real))


@pytest.mark.parametrize("weights", [True, False])
def test_learnt_keys_come_first(weights: bool) -> None:
    """A prefix, against the equation on the first block's own states."""
    base = stack(weights)
    model = changed(base, {"method": "prefix", "length": 3})
    x, block = base.embedding(IDS), base.blocks[0]
    assert isinstance(block, Attending)
    own = block.attention
    q, k, v = nn.functional.linear(x, own.in_proj_weight, own.in_proj_bias).chunk(3, -1)
    learnt = (t.expand(2, -1, -1) for t in _tables(model))
    k, v = (torch.cat((p, t), 1) for p, t in zip(learnt, (k, v), strict=True))
    q, k, v = (t.unflatten(-1, (2, WIDTH // 2)).transpose(1, 2) for t in (q, k, v))
    mixed = (q @ k.transpose(-1, -2) / (WIDTH // 2) ** 0.5).softmax(-1) @ v
    wanted = own.out_proj(mixed.transpose(1, 2).flatten(2))
    states = model.embedding(IDS)
    found, _ = model.blocks[0].attention(states, states, states, need_weights=weights)
    torch.testing.assert_close(found, wanted)


class Encoding(nn.Module):
    """torch's encoder, whose evaluation passes by the forwards of what is in it."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 12, batch_first=True)
        self.embedding, self.encoder = nn.Embedding(11, WIDTH), nn.TransformerEncoder(layer, 2)

    def forward(self, ids: torch.Tensor, real: torch.Tensor | None = None) -> torch.Tensor:
        result: torch.Tensor = self.encoder(
            self.embedding(ids), src_key_padding_mask=None if real is None else real == 0
        )
        return result


@pytest.mark.parametrize("real", [None, REAL])
def test_no_faster_way_of_torchs_goes_by(real: torch.Tensor | None) -> None:
    """LoRA in evaluation with and without gradients, against torch's own encoder on matrices that hold it."""
    torch.manual_seed(0)
    base = Encoding().eval()
    model = changed(base, {"method": "lora", "at": "q", "rank": 2, "alpha": 4})
    by_hand = copy.deepcopy(base)
    with torch.no_grad():
        for theirs, layer in zip(by_hand.encoder.layers, model.encoder.layers, strict=True):
            lora = layer.self_attn.q_lora
            theirs.self_attn.in_proj_weight[:WIDTH] += 2 * lora.B @ lora.A
    seen = (slice(None), slice(None)) if real is None else (real == 1,)
    for mode in (torch.no_grad, torch.enable_grad):
        with mode():
            torch.testing.assert_close(model(IDS, real)[seen], by_hand(IDS, real)[seen])
            assert not torch.allclose(model(IDS, real)[seen], base(IDS, real)[seen])


class Foreseeing(Encoding):
    """torch's encoder under a mask of what comes later; torch finds out by itself, or is told, that it is one."""

    def __init__(self, anywhere: bool) -> None:
        super().__init__()
        self.anywhere = anywhere

    def forward(self, ids: torch.Tensor, told: bool | None = None) -> torch.Tensor:  # type: ignore[override]
        device = None if self.anywhere else ids.device
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1], device=device)
        result: torch.Tensor = self.encoder(self.embedding(ids), mask=mask, is_causal=told)
        return result


@pytest.mark.parametrize("anywhere", [True, False])
def test_what_is_told_of_a_mask_changes_nothing(anywhere: bool) -> None:
    """Neither a mask whose numbers the meta device lacks, nor a hint for torch's kernels hides the learnt keys."""
    torch.manual_seed(0)
    model = changed(Foreseeing(anywhere).eval(), {"method": "prefix", "length": 3}, {"method": "lora", "at": "q"})
    first = model(IDS)
    for told in (True, False):
        torch.testing.assert_close(model(IDS, told=told), first)
    later = IDS.clone()
    later[:, 3:] = 10
    torch.testing.assert_close(model(later)[:, :3], first[:, :3])


class Mixed(Encoding):
    """Its two masks differ in dtype where its states are no float32, of which torch warns."""

    def forward(self, ids: torch.Tensor, real: torch.Tensor | None = None) -> torch.Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1], device=ids.device)
        padding = None if real is None else real == 0
        result: torch.Tensor = self.encoder(self.embedding(ids), mask=mask, src_key_padding_mask=padding)
        return result


@pytest.mark.filterwarnings("ignore:Support for mismatched")
def test_masks_of_two_dtypes() -> None:
    torch.manual_seed(0)
    base = Mixed().to(torch.bfloat16).eval()
    model = peftc.attach(copy.deepcopy(base), spec([{"method": "lora", "at": ["q", "ffn_up"]}]))
    torch.testing.assert_close(model(IDS, REAL), base(IDS, REAL))


class Elsewhere(Attending):
    """Its mask is on no device that the model says, so that the meta device alone cannot run it."""

    def forward(self, x: torch.Tensor, padding: torch.Tensor | None = None) -> torch.Tensor:
        mask = torch.zeros(x.shape[1], x.shape[1])
        result: torch.Tensor = x + self.attention(x, x, x, attn_mask=mask, need_weights=False)[0]
        return result


def test_one_tensor_stays_one_where_a_real_copy_runs() -> None:
    torch.manual_seed(0)
    base = Stack({}, batch_first=True).eval()
    base.blocks = nn.ModuleList(Elsewhere({}, batch_first=True) for _ in range(2)).eval()
    model = peftc.attach(copy.deepcopy(base), spec([{"method": "lora", "at": "q"}]))
    torch.testing.assert_close(model(IDS), base(IDS))


class Hiding(Encoding):
    """Booleans that are made on no device that the model says, beside padding: both on one only where numbers are."""

    def forward(self, ids: torch.Tensor, real: torch.Tensor | None = None) -> torch.Tensor:
        length, padding = ids.shape[1], None if real is None else real == 0
        hidden = torch.triu(torch.ones(length, length), 1).bool()
        result: torch.Tensor = self.encoder(self.embedding(ids), mask=hidden, src_key_padding_mask=padding)
        return result


class Masking(Attending):
    """Given both masks as booleans, and no weights asked for."""

    def forward(self, x: torch.Tensor, padding: torch.Tensor | None = None) -> torch.Tensor:
        hidden = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        result: torch.Tensor = x + self.attention(x, x, x, padding, False, hidden)[0]
        return result


@pytest.mark.parametrize("kind", [Hiding, Masking])
def test_padding_beside_a_mask_of_booleans(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    base = Hiding().eval() if kind is Hiding else Stack({}, batch_first=True).eval()
    if isinstance(base, Stack):
        base.blocks = nn.ModuleList(Masking({}, batch_first=True) for _ in range(2)).eval()
    model = peftc.attach(copy.deepcopy(base), spec([{"method": "lora", "at": ["q", "o"]}]))
    for real in (None, REAL):
        torch.testing.assert_close(model(IDS, real), base(IDS, real))


class Remembering(nn.Module):
    """Attends to a memory of another length and width."""

    def __init__(self, causal: bool, weights: bool, width: int) -> None:
        super().__init__()
        self.own = nn.MultiheadAttention(WIDTH, 2)
        self.other = nn.MultiheadAttention(WIDTH, 2, kdim=width, vdim=width)
        self.causal, self.weights = causal, weights
        self.up, self.down = nn.Linear(WIDTH, 12), nn.Linear(12, WIDTH)

    def forward(self, x: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        hidden = torch.ones(len(x), len(x), dtype=torch.bool).triu(1) if self.causal else None
        x = x + self.own(x, x, x, attn_mask=hidden, need_weights=self.weights)[0]
        x = x + self.other(x, memory, memory, need_weights=self.weights)[0]
        result: torch.Tensor = x + self.down(torch.relu(self.up(x)))
        return result


class Decoding(nn.Module):
    def __init__(self, causal: bool, weights: bool, width: int) -> None:
        super().__init__()
        self.embedding, self.memory = nn.Embedding(11, WIDTH), nn.Embedding(11, width)
        self.blocks = nn.ModuleList(Remembering(causal, weights, width) for _ in range(2))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x, memory = self.embedding(ids).transpose(0, 1), self.memory(ids).repeat(1, 2, 1).transpose(0, 1)
        for block in self.blocks:
            x = block(x, memory)
        result: torch.Tensor = x.transpose(0, 1)
        return result


@pytest.mark.parametrize("width", [WIDTH, 6])
@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("causal", [True, False])
def test_an_attention_to_a_memory_of_length_before_batch(causal: bool, weights: bool, width: int) -> None:
    """LoRA on the cross-attention's query and value, against torch's own on matrices that hold it."""
    torch.manual_seed(0)
    base = Decoding(causal, weights, width).eval()
    model = changed(base, {"method": "lora", "at": ["q", "cross.q", "cross.v"], "rank": 2, "alpha": 2})
    by_hand = copy.deepcopy(base)
    with torch.no_grad():
        for theirs, block in zip(by_hand.blocks, model.blocks, strict=True):
            held = dict(theirs.named_parameters())
            packed = held.get("other.in_proj_weight")
            q, _, v = (held[f"other.{n}_proj_weight"] for n in "qkv") if packed is None else packed.chunk(3)
            own, other = block.own, block.other
            loras = (own.q_lora, held["own.in_proj_weight"][:WIDTH]), (other.cross_q_lora, q), (other.cross_v_lora, v)
            for lora, matrix in loras:
                matrix += lora.B @ lora.A
    torch.testing.assert_close(model(IDS), by_hand(IDS))
    assert not torch.allclose(model(IDS), base(IDS))


def _tables(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    prefix = model.blocks[0].attention.attention_prefix
    return prefix.key, prefix.value


def test_a_mask_of_what_is_padding_is_no_mask_of_what_is_real() -> None:
    with pytest.raises(PeftcError, match="none is known to reach q"):
        peftc.attach(stack(False), spec([{"method": "lora", "at": "q", "gate": "masked"}]))
