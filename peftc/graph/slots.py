"""Where an attention's call has its query, key, value and mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.fx.node import Argument

from peftc.errors import Defect

MASKS = ("attention_mask", "attn_mask", "mask")
OPTIONS = ("dropout_p", "is_causal", "scale", "enable_gqa")  # of torch's attention, behind its mask


def first(node: fx.Node) -> fx.Node:
    """The x of a module's call, or of torch's `linear`."""
    x = node.args[0] if node.args else node.kwargs.get("input", next(iter(node.kwargs.values())))
    if not isinstance(x, fx.Node):
        raise Defect(f"{node.name} is called on {x!r}, which is no tensor")
    return x


def matching(call: fx.Node, key: fx.Node) -> fx.Node:
    """The key, once it is known to be an argument of the call."""
    if key not in call.args and key not in call.kwargs.values():
        raise Defect(f"{key.name} is no argument of the attention {call.name}")
    return key


def read(call: fx.Node, key: fx.Node) -> tuple[Argument, Argument, Argument, Argument]:
    """query, key, value and mask: neighbours in that order, or keyword arguments; a mask that is left out is None."""
    if key not in call.args:
        return call.kwargs["query"], key, call.kwargs["value"], _keyword_mask(call)
    at = call.args.index(key)
    value = call.args[at + 1] if at + 1 < len(call.args) else call.kwargs["value"]
    mask = call.args[at + 2] if at + 2 < len(call.args) else _keyword_mask(call)
    return call.args[at - 1], key, value, mask


def by_name(call: fx.Node) -> None:
    """Let torch's attention have its options by name alone, as they are asked for here."""
    if call.target is nn.functional.scaled_dot_product_attention:
        options = dict(zip(OPTIONS, call.args[4:], strict=False))
        call.args, call.kwargs = call.args[:4], {**options, **call.kwargs}


def write(call: fx.Node, key: fx.Node, parts: Sequence[fx.Node]) -> None:
    """Put a new key, value and mask where the call has its own; what was an is_causal flag is in the mask now."""
    args, options = list(call.args), dict(call.kwargs)
    at = args.index(key) if key in args else None
    mask = "attn_mask" if call.target is nn.functional.scaled_dot_product_attention else "attention_mask"
    names = ("key", "value", next((name for name in MASKS if name in options), mask))
    for i, (name, part) in enumerate(zip(names, parts, strict=True)):
        if at is not None and at + i < len(args):
            args[at + i] = part
        elif at is not None and name not in options:
            args.append(part)
        else:
            options[name] = part
    if options.get("is_causal") is not None or handed(call) is not None:
        options["is_causal"] = False
    call.args, call.kwargs = tuple(args), options


def biases(call: fx.Node, states: Sequence[Argument]) -> list[tuple[str, fx.Node]]:
    """Further keyword arguments with a number for each key: what is added to the scores, such as relative positions."""
    key = states[1]
    assert isinstance(key, fx.Node)
    named = [(n, v) for n, v in call.kwargs.items() if isinstance(v, fx.Node) and v not in states]
    return [(name, node) for name, node in named if _per_key(node, key)]


def _per_key(node: fx.Node, key: fx.Node) -> bool:
    pairs = list(zip(node.meta.get("value", ()), key.meta.get("value", ()), strict=False))
    return bool(pairs) and all(_one_per_key(bias, states) for bias, states in pairs)


def _one_per_key(bias: Any, key: torch.Tensor) -> bool:
    return isinstance(bias, torch.Tensor) and bias.dim() == 4 and bias.shape[-1] == key.shape[2]


def causal(call: fx.Node, otherwise: bool) -> bool | fx.Node:
    """The call's own is_causal, or what is known of the site."""
    flag = call.kwargs.get("is_causal")
    return flag if isinstance(flag, bool | fx.Node) else otherwise


def handed(call: fx.Node) -> fx.Node | None:
    """The **kwargs that the call hands on, where the calls of the examples have an is_causal in them."""
    extra = call.kwargs.get("**")
    if not isinstance(extra, fx.Node):
        return None
    return extra if any("is_causal" in given for given in extra.meta["value"]) else None


def _keyword_mask(call: fx.Node) -> Argument:
    return next((call.kwargs[name] for name in MASKS if name in call.kwargs), None)
