"""How learnt keys and values join an attention: one call, or products around a softmax."""

from __future__ import annotations

from collections.abc import Callable
from operator import getitem, neg
from typing import TYPE_CHECKING

import torch
from torch import fx
from torch.fx.node import Argument, Target

from peftc import modules
from peftc.graph import dataflow, slots
from peftc.graph.branches import end_of
from peftc.graph.sites import Attention, Copied, Windowed, Written
from peftc.graph.together import Together

if TYPE_CHECKING:
    from peftc.graph.editor import Editor


def join(edit: Editor, site: Attention, tables: fx.Node, gate: fx.Node | None) -> None:
    """Let the attention, and nothing else, read the keys and values of `tables` before its own."""
    if isinstance(site.written, Written):
        _join_products(edit, site, site.written, tables, gate)
    elif isinstance(site.written, Windowed):
        _join_window(edit, site.written, tables, gate)
    else:
        _join_call(edit, site, tables, gate)


def _join_window(edit: Editor, window: Windowed, tables: fx.Node, gate: fx.Node | None) -> None:
    """softmax([query P_K', scores]), whose first weights meet P_V, and the others what all of them met before."""
    softmax, weights, output = map(edit.node, (window.softmax, window.weights, window.output))
    scores = dataflow.tensors(softmax)[0]
    first = edit.apply("prefix_scores", edit.node(window.query), tables, *_given(gate))
    first.meta["names"] = ["prefix_scores"]
    wider = edit.insert("call_function", torch.cat, ((first, scores), -1), softmax)
    _instead(edit, softmax, scores, wider, "scores")
    edit.comment(wider)
    own = _behind(edit, weights, modules.without_prefix, weights, tables)
    learnt = _behind(edit, output, modules.prefix_sum, weights, tables, *_given(gate))
    total = _behind(edit, learnt, modules.added, output, learnt)
    for new, old in ((own, weights), (total, output)):
        edit.take_over(new, old)
        old.replace_all_uses_with(new, delete_user_cb=_later(new, learnt))
    edit.comment(total)


def _behind(edit: Editor, node: fx.Node, function: Target, *args: Argument) -> fx.Node:
    return edit.insert("call_function", function, args, end_of(node).next)


def _later(node: fx.Node, but: fx.Node) -> Callable[[fx.Node], bool]:
    """Whether a node stands behind this one, and is not `but`."""
    return lambda user: node < user and user is not but


def _join_call(edit: Editor, site: Attention, tables: fx.Node, gate: fx.Node | None) -> None:
    call, together = edit.node(site.node), site.written if isinstance(site.written, Together) else None
    calls = [edit.node(name) for name in together.calls] if together else [call]
    for each in calls:
        slots.by_name(each)
    key = edit.keys.get(site.node) or slots.matching(call, edit.edited(site.key))
    query, _, value, mask = slots.read(call, key)
    if together:
        value = edit.keys.get(together.value) or edit.edited(together.value)
    causal = slots.causal(call, site.hides)
    if (extra := slots.handed(call)) is not None:
        causal = edit.insert("call_method", "pop", (extra, "is_causal", causal))
        causal.meta["names"] = ["is_causal"]
    options: dict[str, Argument] = {"causal": causal} if causal else {}
    joined = edit.apply("with_prefix", query, key, value, mask, tables, *_given(gate), **options)
    parts = [edit.insert("call_function", getitem, (joined, i)) for i in range(3)]
    for part, before, name in zip(parts, (key, value, mask), ("key", "value", "attention_mask"), strict=True):
        edit.take_over(part, before)
        if not (isinstance(before, fx.Node) and before.meta.get("names")):
            part.meta["names"] = [name]
    edit.comment(joined)
    for each in calls:
        _hand_over(edit, each, key, parts, tables, apart=together is not None)
    edit.keys[site.node] = parts[0]
    if together:
        assert isinstance(value, fx.Node)
        edit.keys[together.value] = parts[1]
        for name in together.readers:
            edit.node(name).replace_input_with(value, parts[1])


def _hand_over(
    edit: Editor, call: fx.Node, key: fx.Node, parts: list[fx.Node], tables: fx.Node, *, apart: bool
) -> None:
    """Let a call read the joined key, value and mask; where its own value is a part of that one, its own."""
    states = slots.read(call, key)
    for name, bias in slots.biases(call, states):
        wider = edit.apply("beside_prefix", bias, tables)
        wider.meta["value"] = bias.meta["value"]  # by which another prefix finds it
        call.update_kwarg(name, wider)
    own = states[2] if apart else parts[1]
    assert isinstance(own, fx.Node)
    slots.write(call, key, (parts[0], own, parts[2]))


def _join_products(edit: Editor, site: Attention, written: Written, tables: fx.Node, gate: fx.Node | None) -> None:
    """softmax([query P_K', scores]) [P_V; value]: the scores of P_K are scaled as the others are, and never masked."""
    softmax, total = edit.node(written.softmax), edit.node(site.node)
    scores, value = dataflow.tensors(softmax)[0], dataflow.tensors(total)[-1]
    key_table, value_table = (edit.insert("call_function", getitem, (tables, i)) for i in range(2))
    key_table.meta["names"], value_table.meta["names"] = ["prefix_key"], ["prefix_value"]
    edit.comment(tables)
    first = _scores(edit, written, key_table, gate)
    wider = edit.insert("call_function", torch.cat, ((first, scores), -1), softmax)
    _instead(edit, softmax, scores, wider, "scores")
    for view in map(edit.node, written.views):
        _resize(edit, view)
    for mask in map(edit.node, written.masks):
        _widen(edit, mask, tables)
    order, along = written.value_order, written.value_order.index(len(written.value_order) - 2)
    states = permuted(edit, value, _inverse(order), total)
    own = edit.insert("call_function", _like(value), (value_table, states, *_given(gate)), total)
    learnt = permuted(edit, own, order, total)
    longer = edit.insert("call_function", torch.cat, ((learnt, value), along - len(order)), total)
    _instead(edit, total, value, longer, "value")


def _widen(edit: Editor, filled: fx.Node, tables: fx.Node) -> None:
    """Let a mask over the weights leave those of the learnt keys as they are."""
    mask = filled.args[1]
    assert isinstance(mask, fx.Node)
    filled.update_arg(1, edit.apply("beside_prefix", mask, tables))


def _instead(edit: Editor, reader: fx.Node, old: fx.Node, new: fx.Node, name: str) -> None:
    edit.take_over(new, old)
    new.meta["names"] = [*old.meta.get("names", ()), name]
    reader.replace_input_with(old, new)


def _scores(edit: Editor, written: Written, table: fx.Node, gate: fx.Node | None) -> fx.Node:
    """The scores of the learnt keys, as the softmax reads them."""
    product = dataflow.product_of(edit.node(written.scores))
    *added, query, key = dataflow.tensors(product)
    turned = _is_turned(written.key_order)
    if turned:
        states = query if _alike(query, key) else edit.insert("call_method", "transpose", (key, -1, -2))
    else:
        states = permuted(edit, key, _inverse(written.key_order))
    own = edit.insert("call_function", _like(key), (table, states, *_given(gate)))
    keys = edit.insert("call_method", "transpose", (own, -1, -2)) if turned else permuted(edit, own, written.key_order)
    for scale in map(edit.node, written.scales):
        source = dataflow.scaled(scale)
        assert source is not None
        keys = edit.again(scale, {source: keys})
    nothing = {bias: edit.insert("call_method", "new_zeros", (bias, 1)) for bias in added}
    again = edit.again if product.name == written.scores else edit.copied
    copies = {written.scores: again(product, {key: keys, **nothing})}
    for step in written.copied:
        node = edit.node(step.node)
        instead = {edit.node(read): copies[image] for read, image in step.reads}
        if step.bias:
            instead[edit.node(step.bias)] = _own_bias(edit, node, step)
        copies[step.node] = edit.again(node, instead)
        if step.resized:
            _resize(edit, copies[step.node], node)
    for copy in copies.values():
        copy.meta["names"] = ["prefix_scores"]
    return copies[written.last]


def _like(states: fx.Node) -> Target:
    """What lays learnt keys and values out as these are, by the number of their axes."""
    layouts = {3: modules.folded_prefix, 4: modules.prefix_like, 5: modules.windowed_prefix}
    return layouts[states.meta["value"][0].dim()]


def _is_turned(order: tuple[int, ...]) -> bool:
    """Whether the last two axes have changed places, and no others."""
    return order == (*range(len(order) - 2), len(order) - 1, len(order) - 2)


def _alike(query: fx.Node, key: fx.Node) -> bool:
    """Whether queries say all that is to be known of turned keys: as many axes, one batch, the width of a head."""
    ours, theirs = (node.meta["value"][0].shape for node in (query, key))
    same = len(ours) == len(theirs) and (ours[0], ours[2:-2]) == (theirs[0], theirs[2:-2])
    return same and ours[-1] == theirs[-2]


def _own_bias(edit: Editor, node: fx.Node, step: Copied) -> fx.Node:
    """Of a bias (…, 1, keys), what the own key of each query has: (…, queries, 1)."""
    (scores, _), *_ = step.reads
    queries = edit.insert("call_method", "size", (edit.node(scores), -2), node)
    queries.meta["names"] = ["queries"]
    start = edit.insert("call_function", neg, (queries,), node)
    last = edit.insert("call_method", "narrow", (edit.node(str(step.bias)), -1, start, queries), node)
    own = edit.insert("call_method", "transpose", (last, -1, -2), node)
    own.meta["names"] = ["prefix_bias"]
    return own


def permuted(edit: Editor, node: fx.Node, order: tuple[int, ...], before: fx.Node | None = None) -> fx.Node:
    """A tensor with its axes in this order: itself where that is the one it has."""
    elsewhere = [axis for axis, source in enumerate(order) if axis != source]
    if not elsewhere:
        return node
    swapped = len(elsewhere) == 2
    method, axes = ("transpose", tuple(elsewhere)) if swapped else ("permute", order)
    return edit.insert("call_method", method, (node, *axes), before)


def _inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(order.index(axis) for axis in range(len(order)))


def _resize(edit: Editor, view: fx.Node, like: fx.Node | None = None) -> None:
    """Let a view take the size of its last axis from what it views: none at all perhaps, so that no -1 can be told."""
    source, *given = view.args
    sizes = list(given[0]) if isinstance(given[0], (tuple, list)) else given
    assert isinstance(source, fx.Node)
    if like and -1 in sizes[:-1]:
        sizes[:-1] = _leading(edit, like, view)
    sizes[-1] = edit.insert("call_method", "size", (source, -1), view)
    view.args = (source, *sizes)


def _leading(edit: Editor, like: fx.Node, before: fx.Node) -> list[fx.Node]:
    """The sizes of all axes but the last."""
    shape = like.meta["value"][0].shape[:-1]
    whole = edit.insert("call_function", getattr, (like, "shape"), before)
    leading = edit.insert("call_function", getitem, (whole, slice(None, -1)), before)
    leading.meta["value"] = (shape, shape)
    return [edit.insert("call_function", getitem, (leading, axis), before) for axis in range(len(shape))]


def _given(gate: fx.Node | None) -> tuple[fx.Node, ...]:
    return () if gate is None else (gate,)
