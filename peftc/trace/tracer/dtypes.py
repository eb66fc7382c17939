"""Which dtypes a forward's tensors have where its model is of bfloat16: the examples are of float32 alone."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import fx

from peftc.graph import dataflow
from peftc.graph.closure import closure
from peftc.trace.record.feeds import FAILURES
from peftc.trace.record.nested import is_plain, rebuilt


def widens(made: fx.Node, kept: fx.Node) -> bool:
    """Whether what is made of a tensor and another one may be of a wider dtype than the tensor.

    Masks and biases that a unit is given, and what it makes of numbers alone, may be of float32.
    """
    held: dict[fx.Node, Any] = {}
    with suppress(*FAILURES):
        for node in sorted(closure([made], lambda n: n.all_input_nodes)):
            held[node] = _in_bfloat16(node, held)
        return bool(held[made].dtype != held[kept].dtype)
    return False


def _in_bfloat16(node: fx.Node, held: Mapping[fx.Node, Any]) -> Any:
    value = node.meta["value"][0]
    if node.op in ("call_function", "call_method") and all(
        is_plain(n.meta["value"][0]) for n in (node, *node.all_input_nodes)
    ):
        return dataflow.recomputed(node, held)
    given = node.op == "placeholder" and isinstance(value, torch.Tensor) and value.dim() > 3
    return value if given else _narrowed(value)


def _narrowed(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return rebuilt(value, map(_narrowed, value))
    floats = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.bfloat16() if floats else value
