"""One graph from two traces of the same forward: what is common stands once, the rest under a condition."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import SequenceMatcher
from typing import Any

from torch import fx

from peftc.graph.branches import Guard, choose

Table = dict[fx.Node, fx.Node]


def merge(if_true: fx.Graph, if_false: fx.Graph, condition: str) -> fx.Graph:
    """A graph that equals `if_true` where the condition holds and `if_false` elsewhere."""
    return _Merger(condition).run(list(if_true.nodes), list(if_false.nodes))


class _Merger:
    """The merged graph while it grows, and where each node of the two traces went."""

    def __init__(self, condition: str) -> None:
        self.condition = condition
        self.graph = fx.Graph()
        self.true: Table = {}
        self.false: Table = {}

    def run(self, true: list[fx.Node], false: list[fx.Node]) -> fx.Graph:
        matcher = SequenceMatcher(None, [n.meta["key"] for n in true], [n.meta["key"] for n in false], autojunk=False)
        for tag, i, j, k, l in matcher.get_opcodes():
            if tag == "equal":
                for a, b in zip(true[i:j], false[k:l], strict=True):
                    self._both(a, b)
                continue
            for node in true[i:j]:
                self._only(node, self.true, True)
            for node in false[k:l]:
                self._only(node, self.false, False)
        return self.graph

    def _only(self, node: fx.Node, table: Table, branch: bool) -> None:
        copy = self._copy(node, _mapped(node.args, table), _mapped(node.kwargs, table))
        if node.op != "placeholder":
            copy.meta["guard"] = (Guard(self.condition, branch), *node.meta.get("guard", ()))
        table[node] = copy

    def _both(self, a: fx.Node, b: fx.Node) -> None:
        args = self._reconcile(_mapped(a.args, self.true), _mapped(b.args, self.false))
        kwargs = self._reconcile(_mapped(a.kwargs, self.true), _mapped(b.kwargs, self.false))
        copy = self._copy(a, args, kwargs)
        copy.meta["names"] = list(dict.fromkeys([*a.meta.get("names", ()), *b.meta.get("names", ())]))
        self.true[a] = self.false[b] = copy

    def _copy(self, node: fx.Node, args: Any, kwargs: Any) -> fx.Node:
        copy = self.graph.create_node(node.op, node.target, args, kwargs)
        copy.meta.update(node.meta)
        return copy

    def _reconcile(self, a: Any, b: Any) -> Any:
        """One value that is `a` where the condition holds and `b` elsewhere."""
        if type(a) is type(b) and isinstance(a, (tuple, list)) and len(a) == len(b):
            return type(a)(self._reconcile(x, y) for x, y in zip(a, b, strict=True))
        if isinstance(a, Mapping) and isinstance(b, Mapping) and set(a) == set(b):
            return {k: self._reconcile(a[k], b[k]) for k in a}
        if isinstance(a, slice) and isinstance(b, slice):
            return slice(*(self._reconcile(x, y) for x, y in zip(_bounds(a), _bounds(b), strict=True)))
        if a is b or (type(a) is type(b) and a == b and not isinstance(a, fx.Node)):
            return a
        if b is None and isinstance(a, fx.Node) and self.condition == f"{a.target} is not None":
            return a
        return self._choice(a, b)

    def _choice(self, a: Any, b: Any) -> fx.Node:
        for node in self.graph.nodes:
            if node.target is choose and node.args == (self.condition, a, b):
                return node
        after = self._latest_of_region(a, b)
        with self.graph.inserting_after(after) if after else self.graph.inserting_after(_last(self.graph)):
            node = self.graph.call_function(choose, (self.condition, a, b))
        source = a if isinstance(a, fx.Node) else b
        meta = source.meta if isinstance(source, fx.Node) else {}
        node.meta.update(key=("choose", self.condition), names=list(meta.get("names", ())), guard=(), scope=())
        node.meta["value"] = meta.get("value", (a, a))
        return node

    def _latest_of_region(self, a: Any, b: Any) -> fx.Node | None:
        """The last node of the conditional region that makes `a` or `b`, or None where neither is conditional."""
        guarded = [n for n in (a, b) if isinstance(n, fx.Node) and self._guarded(n)]
        if not guarded:
            return None
        order = list(self.graph.nodes)
        last = max(order.index(n) for n in guarded)
        while last + 1 < len(order) and (self._guarded(order[last + 1]) or order[last + 1].target is choose):
            last += 1
        return order[last]

    def _guarded(self, node: fx.Node) -> bool:
        return any(guard.condition == self.condition for guard in node.meta.get("guard", ()))


def _mapped(value: Any, table: Table) -> Any:
    return fx.node.map_arg(value, lambda n: table[n])


def _bounds(value: slice) -> tuple[Any, Any, Any]:
    return value.start, value.stop, value.step


def _last(graph: fx.Graph) -> fx.Node:
    return list(graph.nodes)[-1]


def merged(
    traces: Callable[[tuple[bool, ...]], fx.Graph], conditions: tuple[str, ...], taken: tuple[bool, ...] = ()
) -> fx.Graph:
    """The graph over every combination of conditions: `traces` gives the one of each."""
    if len(taken) == len(conditions):
        return traces(taken)
    true = merged(traces, conditions, (*taken, True))
    false = merged(traces, conditions, (*taken, False))
    return merge(true, false, conditions[len(taken)])
