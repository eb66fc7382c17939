"""An attention in the module's own words: scores = query key', softmax, times value."""

from __future__ import annotations

import operator
from collections.abc import Container, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import fx, nn

from peftc.graph import dataflow
from peftc.graph.branches import choose
from peftc.graph.sites import Copied, Written
from peftc.trace.roles.layouts import PER_KEY, SCALING, layouts, sized_by
from peftc.trace.roles.products import averages, is_any_softmax, is_product, is_softmax, over_keys
from peftc.trace.roles.views import View

ADDING = frozenset({"add", "iadd", "add_"})
REDUCING = frozenset({"amax", "amin"})
FILLED, SHAPED = frozenset({"full_like", "ones_like"}), frozenset({"reshape_as", "view_as", "expand_as"})
REPEATING = frozenset({"expand", "broadcast_to"})
CASTS = frozenset({"to", "float", "type", "type_as"})
MASKING = frozenset({"where", "masked_fill", "masked_fill_"})


@dataclass(frozen=True)
class Found:
    """The nodes of an attention: two products, the softmax between them, and what the products are of."""

    scores: fx.Node
    softmax: fx.Node
    total: fx.Node
    query: fx.Node
    key: fx.Node
    value: fx.Node


def attentions(view: View) -> Iterator[Found]:
    """Every softmax over the keys of a product, whose weights go into another one."""

    def product(node: fx.Node) -> bool:
        return is_product(view, node)

    for node in view.graph.nodes:
        sums = dataflow.downstream(view.flow, node, product) if is_softmax(view, node) else []
        if len(sums) != 1:
            continue
        weights, *value = dataflow.tensors(sums[0])[-2:]
        before = [(p, dataflow.product_of(p)) for p in dataflow.upstream(view.flow, node, product)]
        factors = [(scores, *dataflow.tensors(plain)[-2:]) for scores, plain in before]
        own = [f for f in factors if len(f) == 3 and value and (len(factors) == 1 or _one_input(view, *f[1:], *value))]
        if len(own) == 1 and weights in dataflow.reached(view.flow, node):
            scores, query, key = own[0]
            yield Found(scores, node, sums[0], query, key, *value)


def _one_input(view: View, *factors: fx.Node) -> bool:
    """Whether linear maps of one value make all of these: not so for products of positions that add to the scores."""
    linears = [linear for factor in factors for linear in dataflow.upstream(view.flow, factor, view.is_linear)]
    inputs = {str(linear.args[0]) for linear in linears}
    return len(linears) >= len(factors) and len({view.alike.get(name, name) for name in inputs}) == 1


def joint(view: View, found: Found, x: fx.Node, causal: bool) -> Written | str:
    """How learnt keys and values join an attention whose input is x; or a sentence that says why they cannot.

    Where it is causal, the queries are those of the last keys.
    """
    made = _joint(view, found, x, causal)
    return made if isinstance(made, Written) else f"is written out as products around a softmax, and {made}"


def _joint(view: View, found: Found, x: fx.Node, causal: bool) -> Written | str:
    batches = [tuple(value.shape[axis] for value in x.meta["value"]) for axis in (0, 1)]
    by_axis = [layouts(view, found.scores, found.key, found.total, found.value, batch) for batch in batches]
    if (both := by_axis[0] or by_axis[1]) is None:
        return "its keys and values are not (batch, heads, …) in both of its products"
    if not over_keys(view, found.softmax):
        return "its softmax is not over the last axis"
    if weighed_again(view, found):
        return "another softmax weighs its keys too"
    chain = _Chain(view, found.scores, causal)
    weights = _weights(view, found)
    reasons = [*map(chain.take, dataflow.between(view.flow, found.scores, found.softmax)[1:-1])]
    reasons += [unpassed(view, node, {found.softmax, *weights}) for node in weights]
    masks = tuple(node.name for node in weights if _masks(node, {found.softmax, *weights}))
    if reason := next(filter(None, reasons), None):
        return reason
    keys, values = both
    last = chain.images[found.softmax.all_input_nodes[0]]
    views = tuple(node.name for node in weights if _names_keys(node) and -1 not in node.args[-1:])
    return Written(
        found.scores.name, found.softmax.name, keys.heads, keys.width, values.width, tuple(chain.copied), last.name,
        views, masks, keys.order, values.order, tuple(_scales(found.key)),
    )  # fmt: skip


def mask_added(view: View, found: Found) -> fx.Node | None:
    """The parameter (batch, 1, queries or 1, keys) that the scores take as a mask of floats, as it was given."""
    own = dataflow.reached(view.flow, found.scores)
    for node in dataflow.between(view.flow, found.scores, found.softmax)[1:-1]:
        others = [n for n in dataflow.tensors(node) if n not in own] if dataflow.name_of(node) in ADDING else []
        for other in map(_as_given, others):
            if other.op == "placeholder" and all(_is_mask_of_floats(value) for value in other.meta["value"]):
                return other
    return None


def _as_given(node: fx.Node) -> fx.Node:
    """What a tensor was before it was moved or cast."""
    while (dataflow.is_move(node) or dataflow.name_of(node) in CASTS) and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node


def _is_mask_of_floats(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point() and value.dim() == 4 and value.shape[1] == 1


def _scales(key: fx.Node) -> list[str]:
    """What multiplies all keys by one number on their way into the product: each of them, so learnt ones too."""
    names: list[str] = []
    while (source := dataflow.scaled(key)) or dataflow.is_move(key):
        names = [key.name, *names] if source else names
        before = source or key.args[0]
        if not isinstance(before, fx.Node):
            break
        key = before
    return names


def weighed_again(view: View, found: Found) -> bool:
    """Whether what is made for the keys alone goes into the scores of another softmax over the same."""
    before = view.flow.reverse(copy=False)
    others = dataflow.reached(before, found.query) | dataflow.reached(before, found.value)
    for linear in dataflow.upstream(view.flow, found.key, view.is_linear):
        own = [node for node in dataflow.between(view.flow, linear, found.key) if node not in others]
        read_by = {s for node in own for s in dataflow.downstream(view.flow, node, partial(is_any_softmax, view))}
        if any(_weighs_same(view, softmax, found) for softmax in read_by - {found.softmax}):
            return True
    return False


def _weighs_same(view: View, softmax: fx.Node, found: Found) -> bool:
    """Whether a softmax weighs something that anything of this attention's keys is in: not another flow's values."""
    sums, before = dataflow.downstream(view.flow, softmax, partial(is_product, view)), view.flow.reverse(copy=False)
    if len(sums) != 1:
        return True
    value = dataflow.tensors(sums[0])[-1]
    return not dataflow.reached(before, found.key).isdisjoint(dataflow.reached(before, value))


def _weights(view: View, found: Found) -> list[fx.Node]:
    """What becomes of the softmax's weights before and beside the second product."""
    after = dataflow.reached(view.flow, found.softmax) - dataflow.reached(view.flow, found.total) - {found.softmax}
    return sorted(node for node in after if node.op != "output")


class _Chain:
    """What lies between the scores and the softmax, as the scores of other keys would pass it.

    A number for each key masks it or adds to it, and is nothing to the other keys; all else is done to them too.
    """

    def __init__(self, view: View, scores: fx.Node, causal: bool) -> None:
        self.view, self.causal = view, causal
        self.images: dict[fx.Node, fx.Node] = {scores: scores}
        self.copied: list[Copied] = []

    def take(self, node: fx.Node) -> str | None:
        """Go through one more node; the reason if nothing is known of it."""
        read = [n for n in node.all_input_nodes if n in self.images]
        if not read or dataflow.name_of(node) in REDUCING or _is_filled(node, self.images):
            return None  # one number for a query, or one for all, or nothing but their shape
        images = {self.images[n] for n in read}
        others = [n for n in dataflow.tensors(node) if n not in self.images and dataflow.name_of(node) != "type_as"]
        known = not others if node.target is choose else len(read) == 1 and self._is_known(node, read[0], others)
        if not known or any(_changes(user) for n in read for user in n.users):
            return f"its scores pass {dataflow.name_of(node)} on their way to the softmax"
        ends = [n for n in others if _from_the_end(n)]
        if ends and not (self.causal and dataflow.name_of(node) in ADDING and all(_is_row(n) for n in ends)):
            return "its scores take a bias that is counted from the last key, and no query is known to be that key's"
        if not ends and len(images) == 1 and (node.target is choose or _is_mask(node, read[0], others)):
            self.images[node] = images.pop()
            return None
        self.images[node] = node
        reads, bias = tuple((n.name, self.images[n].name) for n in read), next((n.name for n in ends), None)
        self.copied.append(Copied(node.name, reads, _names_keys(node), bias))
        return None

    def _is_known(self, node: fx.Node, read: fx.Node, others: list[fx.Node]) -> bool:
        if node.op == "call_module":
            return _is_plain(self.view, node)
        if _is_mask(node, read, others):
            return True
        if dataflow.name_of(node) in SCALING:
            return not any(_per_key(n, node) for n in others)
        return dataflow.is_move(node) and _keeps_last(node)


def _is_mask(node: fx.Node, read: fx.Node, others: list[fx.Node]) -> bool:
    """Whether a node masks the scores, or adds something to those of each key."""
    name = dataflow.name_of(node)
    if name in MASKING:
        return read is not node.args[0] or name != "where"
    return any(_per_key(n, node) for n in others) and (name in PER_KEY or (name == "sub" and node.args[0] is read))


def _is_filled(node: fx.Node, scores: Container[fx.Node]) -> bool:
    """Whether a node has no score: other numbers in their shape, zeros, or what stands where a mask hides them."""
    name, chosen = dataflow.name_of(node), all(dataflow.name_of(user) == "where" for user in node.users)
    return name == "zeros_like" or (name in FILLED and chosen) or (name in SHAPED and node.args[0] not in scores)


def _from_the_end(node: fx.Node) -> bool:
    """Whether a tensor is the end of a longer one along the keys, as many as there are."""
    while dataflow.is_move(node) and isinstance(node.args[0], fx.Node):
        part = node.args[1] if node.target is operator.getitem else None
        last = part[-1] if isinstance(part, tuple) else part
        if isinstance(last, slice) and isinstance(last.start, fx.Node):
            return True
        node = node.args[0]
    return False


def _is_row(node: fx.Node) -> bool:
    """Whether a tensor has the same numbers for every query."""
    return all(value.dim() > 1 and value.shape[-2] == 1 for value in node.meta["value"])


def _changes(node: fx.Node) -> bool:
    """Whether a node changes its first argument in place, and what it returns is not read."""
    return not node.users and dataflow.name_of(node).endswith("_") and dataflow.name_of(node) not in MASKING


def _per_key(other: fx.Node, node: fx.Node) -> bool:
    """Whether a tensor has more than one number along the keys."""
    pairs = zip(other.meta["value"], node.meta["value"], strict=True)
    return any(o.dim() > 0 and o.shape[-1] != 1 and n.shape[-1] != 1 for o, n in pairs)


def unpassed(view: View, node: fx.Node, weights: set[fx.Node]) -> str | None:
    """The reason why the weights of more keys could not pass a node, or None."""
    others = [n for n in dataflow.tensors(node) if n not in weights and dataflow.name_of(node) != "type_as"]
    scales = dataflow.name_of(node) in SCALING and not any(_per_key(n, node) for n in others)
    moves = dataflow.is_move(node) and (_is_item(node) or _keeps_last(node))
    repeats = dataflow.name_of(node) in REPEATING and sized_by(node) <= weights and _keeps_last(node)
    known = _is_plain(view, node) or scales or moves or averages(node) or repeats
    passes = known or _filling(node, weights) is not None
    if node.target is choose or not dataflow.holds_tensor(node) or passes:
        return None
    return f"its weights pass {dataflow.name_of(node)}"


def _masks(node: fx.Node, weights: set[fx.Node]) -> bool:
    """Whether a node fills the weights of the keys that a mask names, one entry of it for each key."""
    mask = _filling(node, weights)
    return mask is not None and _per_key(mask, node)


def _filling(node: fx.Node, weights: set[fx.Node]) -> fx.Node | None:
    """The mask by which a node fills weights: those of some keys, or all of some queries."""
    if dataflow.name_of(node) not in ("masked_fill", "masked_fill_") or node.args[0] not in weights:
        return None
    mask = node.args[1]
    return mask if isinstance(mask, fx.Node) and mask not in weights else None


def _is_item(node: fx.Node) -> bool:
    return node.target is operator.getitem and isinstance(node.args[1], int)


def _is_plain(view: View, node: fx.Node) -> bool:
    return isinstance(view.called(node), (nn.Dropout, nn.Identity))


def _names_keys(node: fx.Node) -> bool:
    """Whether a node is a view that names the size of the last axis."""
    return dataflow.name_of(node) in ("view", "reshape")


def _keeps_last(node: fx.Node) -> bool:
    """Whether a move leaves the last axis as it is."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    before = source.meta["value"][0].shape
    places = torch.arange(before[-1]).expand(before).contiguous()
    after = dataflow.recomputed(node, {source: places, **_untold(node)})
    return isinstance(after, torch.Tensor) and after.shape[-1] == before[-1] and bool((after == places[0, 0]).all())


def _untold(node: fx.Node) -> dict[fx.Node, int]:
    """The last size of a view as what is left: the number of keys is another in each of the calls merged here."""
    sizes = list(node.args[1:])
    last = sizes[-1] if _names_keys(node) else None
    return {last: -1} if isinstance(last, fx.Node) and sizes.count(last) == 1 and -1 not in sizes else {}
