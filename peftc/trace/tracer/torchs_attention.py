"""torch's own multi-head attention in the operations that it is made of, in which methods find their places.

torch's code asks what kernels there are, and keeps its projections in one parameter.  These run in its stead while a
unit is traced, on proxies alone: the same operations on the same layouts, so that the results are the same bits.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn.functional import linear, pad, scaled_dot_product_attention, softmax

from peftc.graph.dataflow import unmoved
from peftc.trace.tracer.values import EXTRA, Value, fail


def module_forward(
    self: nn.MultiheadAttention, query: Any, key: Any, value: Any, key_padding_mask: Any = None,
    need_weights: Any = True, attn_mask: Any = None, average_attn_weights: Any = True, is_causal: Any = False,
) -> Any:  # fmt: skip
    """torch.nn.MultiheadAttention.forward, without its faster way for inference."""
    need_weights, average_attn_weights = _always(need_weights), _always(average_attn_weights)
    own_value, own_key = not _is_same(value, key), not _is_same(key, query)
    states = query.transpose(0, 1) if self.batch_first else query
    key_states = states if not own_key else key.transpose(0, 1) if self.batch_first else key
    value_states = key_states if not own_value else value.transpose(0, 1) if self.batch_first else value
    attn_output, attn_weights = forward(
        states, key_states, value_states, self.embed_dim, self.num_heads, self.in_proj_weight, self.in_proj_bias,
        self.bias_k, self.bias_v, self.add_zero_attn, self.dropout, self.out_proj.weight, self.out_proj.bias,
        training=self.training, key_padding_mask=key_padding_mask, need_weights=need_weights, attn_mask=attn_mask,
        use_separate_proj_weight=not self._qkv_same_embed_dim, q_proj_weight=self.q_proj_weight,
        k_proj_weight=self.k_proj_weight, v_proj_weight=self.v_proj_weight, average_attn_weights=average_attn_weights,
        is_causal=is_causal,
    )  # fmt: skip
    if self.batch_first:
        attn_output = attn_output.transpose(0, 1)
    return attn_output, attn_weights


def forward(
    query: Any, key: Any, value: Any, embed_dim_to_check: Any, num_heads: Any, in_proj_weight: Any, in_proj_bias: Any,
    bias_k: Any, bias_v: Any, add_zero_attn: Any, dropout_p: Any, out_proj_weight: Any, out_proj_bias: Any,
    training: Any = True, key_padding_mask: Any = None, need_weights: Any = True, attn_mask: Any = None,
    use_separate_proj_weight: Any = False, q_proj_weight: Any = None, k_proj_weight: Any = None,
    v_proj_weight: Any = None, static_k: Any = None, static_v: Any = None, average_attn_weights: Any = True,
    is_causal: Any = False,
) -> Any:  # fmt: skip
    """torch.nn.functional.multi_head_attention_forward of (length, batch, width)."""
    if query.dim() != 3 or static_k is not None or static_v is not None or add_zero_attn:
        fail("its attention is given unbatched or static states, or a zero")
    length, batch, width = query.shape
    if use_separate_proj_weight:
        query, key, value = _separate(query, key, value, (q_proj_weight, k_proj_weight, v_proj_weight), in_proj_bias)
    else:
        query, key, value = _packed(query, key, value, in_proj_weight, in_proj_bias, width)
    if bias_k is not None:
        key = torch.cat([key, bias_k.repeat(1, batch, 1)])
        value = torch.cat([value, bias_v.repeat(1, batch, 1)])
        attn_mask = pad(attn_mask, (0, 1)) if attn_mask is not None else None
        key_padding_mask = pad(key_padding_mask, (0, 1)) if key_padding_mask is not None else None
    keys = key.shape[0]
    hides = attn_mask is not None and key_padding_mask is None and not need_weights and bool(is_causal)
    mask = None if hides else _merged(attn_mask, key_padding_mask, query, (batch, num_heads, keys))
    dropout_p = dropout_p if training else 0.0
    query = query.view(length, batch * num_heads, -1).transpose(0, 1)
    key = key.view(keys, batch * num_heads, -1).transpose(0, 1)
    value = value.view(keys, batch * num_heads, -1).transpose(0, 1)
    if not need_weights:
        query = query.view(batch, num_heads, length, -1)
        key = key.view(batch, num_heads, keys, -1)
        value = value.view(batch, num_heads, keys, -1)
        attn_output = scaled_dot_product_attention(query, key, value, mask, dropout_p, hides)
        attn_output = attn_output.permute(2, 0, 1, 3).reshape(length, batch, width)
        return linear(attn_output, out_proj_weight, out_proj_bias), None
    query = query * math.sqrt(1 / (embed_dim_to_check // num_heads))
    if mask is None:
        scores = torch.bmm(query, key.transpose(-2, -1))
    else:
        mask = mask.expand(batch, num_heads, -1, -1).flatten(0, 1)
        scores = torch.baddbmm(mask, query, key.transpose(-2, -1))
    attn_weights = softmax(scores, dim=-1)
    if dropout_p > 0.0:
        attn_weights = nn.functional.dropout(attn_weights, p=dropout_p)
    attn_output = torch.bmm(attn_weights, value)
    attn_output = attn_output.transpose(0, 1).reshape(length, batch, width)
    attn_weights = attn_weights.view(batch, num_heads, length, keys)
    if average_attn_weights:
        attn_weights = attn_weights.mean(dim=1)
    return linear(attn_output, out_proj_weight, out_proj_bias), attn_weights


def _packed(query: Any, key: Any, value: Any, weight: Any, bias: Any, width: int) -> tuple[Any, Any, Any]:
    """One product for all that reads the same states."""
    if query is key is value:
        projected = linear(query, weight, bias).unflatten(-1, (3, -1)).movedim(-2, 0).contiguous()
        return projected[0], projected[1], projected[2]
    if key is not value:
        return _separate(query, key, value, weight.chunk(3), bias)
    weights = weight.split([width, width * 2])
    biases = (None, None) if bias is None else bias.split([width, width * 2])
    projected = linear(key, weights[1], biases[1]).unflatten(-1, (2, -1)).movedim(-2, 0).contiguous()
    return linear(query, weights[0], biases[0]), projected[0], projected[1]


def _separate(query: Any, key: Any, value: Any, weights: Any, bias: Any) -> tuple[Any, Any, Any]:
    q_bias, k_bias, v_bias = (None, None, None) if bias is None else bias.chunk(3)
    return linear(query, weights[0], q_bias), linear(key, weights[1], k_bias), linear(value, weights[2], v_bias)


def _merged(attn_mask: Any, key_padding_mask: Any, query: Any, sizes: tuple[Any, Any, Any]) -> Any:
    """Both masks as one that is added to the scores: (1 or batch, 1 or heads, 1 or queries, keys)."""
    mask = canonical(attn_mask, target_type=query.dtype)
    key_padding_mask = canonical(key_padding_mask, target_type=query.dtype)  # a line of its own, by which it is known
    batch, num_heads, keys = sizes
    if mask is not None:
        mask = mask.view(batch, num_heads, -1, keys) if mask.dim() == 3 else mask[None, None]
    if key_padding_mask is not None:
        key_padding_mask = key_padding_mask.view(batch, 1, 1, keys)
        mask = key_padding_mask if mask is None else mask + key_padding_mask
    return mask


def canonical(
    mask: Any, mask_name: Any = "", other_type: Any = None, other_name: Any = "", target_type: Any = None,
    check_other: Any = True,
) -> Any:  # fmt: skip
    """torch.nn.functional._canonical_mask, without its warning that another mask has another dtype.

    A mask as numbers that are added: true is what nothing attends to.
    """
    if mask is None or not _is_bool(mask):
        return mask
    return torch.zeros_like(mask, dtype=target_type).masked_fill_(mask, float("-inf"))


def _always(flag: Any) -> Any:
    """A flag as the calls give it, which the emitted code checks."""
    if type(flag) is Value:
        name, flag = str(flag.node.target), bool((given := flag).points[0])
        given.tracer.assume(name, flag, f"{name}={not flag}")
    return flag


def _is_bool(mask: Any) -> bool:
    """Whether a mask is true or false: the emitted code asks that of one that is given, where both kinds may come."""
    source: object = unmoved(mask.node) if type(mask) is Value else None
    given = isinstance(source, fx.Node) and source.op == "placeholder"
    return bool((mask if given or source is None else mask.points[0]).dtype == torch.bool)


def _is_same(one: Any, other: Any) -> bool:
    """Whether two arguments are one tensor in every call, which the emitted code checks."""
    if one is other or type(one) is not Value or type(other) is not Value:
        return one is other
    return bool(one.tracer.create_proxy("call_function", operator.is_, (one, other), {}))


def replaced(function: Callable[..., Any], instead: Callable[..., Any]) -> Callable[..., Any]:
    """Another function where a value of a trace is given; what its caller's **kwargs have for it is named by then."""

    @functools.wraps(function)
    def chosen(*args: Any, **kwargs: Any) -> Any:
        given = any(type(a) is Value for a in (*args, *kwargs.values()))
        kwargs.pop(EXTRA, None)
        return (instead if given else function)(*args, **kwargs)

    return chosen


REPLACED = (
    (nn.MultiheadAttention, "forward", module_forward),
    (nn.functional, "multi_head_attention_forward", forward),
    (nn.functional, "_canonical_mask", canonical),
)
