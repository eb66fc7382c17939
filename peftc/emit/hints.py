"""What a value may be called: the source's words for it, for what it becomes, for what it was made of."""

from __future__ import annotations

import builtins
import operator
from collections.abc import Sequence

import torch
from torch import fx

from peftc.graph.branches import assume, choose
from peftc.graph.dataflow import example, is_move, tensors

# What an operator's result is called where the source has no name for it.
WORDS = {
    "mul": "product",
    "add": "total",
    "sub": "difference",
    "truediv": "ratio",
    "eq": "same",
    "ne": "differs",
    "getitem": "part",
    "choose": "chosen",
    "masked_fill": "masked",
    "transpose": "transposed",
    "view": "viewed",
    "base_forward": "output",
}


def hints(nodes: Sequence[fx.Node]) -> list[str]:
    """The names that a variable of these nodes may have, the best first."""
    found = [h for n in nodes for h in own_names(n)]
    return found or [h for n in nodes for h in (*_stored(n), *_destined(n), *n.meta.get("given", ()))]


def own_names(node: fx.Node) -> list[str]:
    """The source's variables that held the value."""
    own = [str(node.target)] if node.op == "placeholder" else []
    named = [node.meta["name"]] if node.meta.get("name") else []
    return [h for h in (*own, *named, *node.meta.get("names", ())) if h != "_"]


def _stored(node: fx.Node) -> list[str]:
    """The variable that the source put the value into, though nothing was computed while it stood there."""
    return [name for name in (node.meta.get("stored"),) if name and name != "_"]


def _destined(node: fx.Node) -> list[str]:
    """The names of what a value becomes: step by step, each with one reader that only changes it."""
    while len(users := _readers(node)) == 1:
        user = users[0]
        if user.target in (operator.getitem, choose, assume) or _subject(user) is not node or _mixes(user, node):
            return []
        if names := own_names(user) or _stored(user):
            return names
        node = user
    return []


def _readers(node: fx.Node) -> list[fx.Node]:
    """Who reads a value, but for who only looks at its shape."""
    return [user for user in node.users if user.target != "view_as" or user.args[0] is node]


def _mixes(node: fx.Node, subject: fx.Node) -> bool:
    """Whether a node makes something else of a tensor and others, as products do, or no tensor at all."""
    before, after = example(subject), example(node)
    if not isinstance(before, torch.Tensor) or not isinstance(after, torch.Tensor):
        return node.meta.get("replaces") is None
    return before.shape != after.shape and len(tensors(node)) > 1


def _subject(node: fx.Node) -> fx.Node:
    """What a node changes: its first input, or the one whose place it took."""
    given = node.all_input_nodes
    return next((n for n in given if n.name == node.meta.get("replaces")), given[0])


def continued(node: fx.Node) -> fx.Node | None:
    """The one tensor that a value was made of, where it has kept its shape or was only moved."""
    made_of = tensors(node)
    if len(made_of) != 1 or node.target is choose or not node.op.startswith("call"):
        return None
    before, after = example(made_of[0]), example(node)
    if not isinstance(before, torch.Tensor) or not isinstance(after, torch.Tensor):
        return None
    seen = is_move(node) and node.target is not operator.getitem
    return made_of[0] if before.shape == after.shape or seen else None


def fallback(node: fx.Node) -> str:
    """The word for what made a value."""
    if isinstance(example(node), torch.Size):
        return "shape"
    if node.meta.get("replaces"):
        return fallback(_subject(node))
    made = node.args[1] if node.target is getattr else node.target
    text = made if isinstance(made, str) else getattr(made, "__name__", "value")
    word = next((part.lower() for part in reversed(text.split(".")) if part.isidentifier()), "value").strip("_")
    of_base = node.op == "call_module" and isinstance(example(node), torch.Tensor)
    word = f"{word}_output" if of_base else WORDS.get(word, word)
    return word if word.isidentifier() and word not in vars(builtins) else "value"
