"""LN(output + residual) of a post-norm sublayer, computed once more on what a placement makes of the two."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import fx

from peftc.graph import dataflow, slots
from peftc.graph.sites import Sublayer

if TYPE_CHECKING:
    from peftc.graph.editor import Editor


def once_more(edit: Editor, site: Sublayer, before: fx.Node) -> fx.Node:
    """The sum `before`, and the site's norm of it, copied next to what the placement changes.

    A norm that the block writes out is copied operation by operation.
    """
    output = edit.output(site)  # what the sum reads by now: other placements may have changed it
    beside = {n.name: n for n in before.all_input_nodes if n is not output}
    total = edit.copied(before, {} if site.residual in beside else {n: edit.residual(site) for n in beside.values()})
    if site.norm is None:
        return total
    norm = edit.node(site.norm)
    made = {before: total}
    for node in _way(before, norm):
        if dataflow.is_move(node) and made.get(slots.first(node)) is total:
            made[node] = total
            continue
        weights = {n: edit.copied(n, {}) for n in node.all_input_nodes if n.op == "get_attr"}
        made[node] = edit.copied(node, {**made, **weights})
    return made[norm]


def _way(start: fx.Node, end: fx.Node) -> Iterator[fx.Node]:
    """What is made from one node for another, in order; that one last."""
    behind, node = {start}, start
    while node is not end:
        node = node.next
        if behind.intersection(node.all_input_nodes):
            behind.add(node)
    needed = {end}
    for node in sorted(behind, reverse=True):
        if not needed.isdisjoint(node.users):
            needed.add(node)
    return (node for node in sorted(behind & needed) if node is not start)
