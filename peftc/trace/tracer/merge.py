"""One graph from several traces of the same forward: what is common stands once, the rest under a condition."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from difflib import SequenceMatcher
from typing import Any

import torch
from torch import fx

from peftc.graph import dataflow
from peftc.graph.branches import Guard, LiftedStr, Size, assume, choose, moved
from peftc.trace.record.nested import rebuilt
from peftc.trace.record.source import told
from peftc.trace.tracer.values import fail
from peftc.trace.tracer.ways import is_number, outcomes

Table = dict[fx.Node, fx.Node]
Condition = str | fx.Node | None


def merged_by_decisions(graphs: Sequence[fx.Graph]) -> fx.Graph:
    """The graph of traces that went apart at what they computed: each such branch becomes a condition."""
    first, *others = graphs
    split = _first_difference([outcomes(graph) for graph in graphs])
    if split is None:
        for other in others:
            first = merge(first, other, None)
        return first
    sides = {True: [g for g in graphs if _outcome(g, split)], False: [g for g in graphs if not _outcome(g, split)]}
    return merge(merged_by_decisions(sides[True]), merged_by_decisions(sides[False]), None)


def _outcome(graph: fx.Graph, key: Any) -> bool:
    return outcomes(graph).get(key, False)


def _first_difference(taken: Sequence[Mapping[Hashable, bool]]) -> Hashable | None:
    """The key of the first decision that traces took differently, of one that all have come to if there is any."""
    keys = [k for k in dict.fromkeys(k for own in taken for k in own) if len({own[k] for own in taken if k in own}) > 1]
    return next((key for key in keys if all(key in own for own in taken)), next(iter(keys), None))


def merge(if_true: fx.Graph, if_false: fx.Graph, condition: str | None) -> fx.Graph:
    """A graph that equals `if_true` where the condition holds and `if_false` elsewhere.

    Without a condition it is the first decision that the two took differently.
    """
    return _Merger(condition).run(list(if_true.nodes), list(if_false.nodes))


class _Merger:
    """The merged graph while it grows, and where each node of the two traces went."""

    def __init__(self, condition: Condition) -> None:
        self.condition = condition
        self.graph = fx.Graph()
        self.true: Table = {}
        self.false: Table = {}
        self.widened: set[fx.Node] = set()

    def run(self, true: list[fx.Node], false: list[fx.Node]) -> fx.Graph:
        ours, theirs = ([n.meta["key"] for n in side] for side in (true, false))
        for tag, i, j, k, end in SequenceMatcher(None, ours, theirs, autojunk=False).get_opcodes():
            if tag == "equal":
                for a, b in zip(true[i:j], false[k:end], strict=True):
                    self._both(a, b)
                continue
            for node in true[i:j]:
                self._only(node, self.true, True)
            for node in false[k:end]:
                self._only(node, self.false, False)
        return self.graph

    def _only(self, node: fx.Node, table: Table, branch: bool) -> None:
        copy = self._copy(node, table, _mapped(node.args, table), _mapped(node.kwargs, table))
        if node.op != "placeholder" and not self._is_size(node):
            if self.condition is None:
                fail(f"{told(node)} is computed in some calls only, and nothing says in which")
            copy.meta["guard"] = self._inside(copy.meta["guard"], Guard(self.condition, branch))
        table[node] = copy

    def _inside(self, guards: tuple[Guard, ...], *own: Guard) -> tuple[Guard, ...]:
        """Guards behind those under which the condition itself is computed: it is known nowhere else."""
        condition = self.condition
        around = condition.meta.get("guard", ()) if isinstance(condition, fx.Node) else ()
        return (*around, *own, *(g for g in guards if g not in around))

    def _both(self, a: fx.Node, b: fx.Node) -> None:
        if a.target is assume and a.args[1] != b.args[1]:
            self._decided(a, b)
            return
        guard = self._common(a, b)
        if guard is None:
            self._only(a, self.true, True)
            self._only(b, self.false, False)
            return
        args = self._reconcile(_mapped(a.args, self.true), _mapped(b.args, self.false))
        kwargs = self._reconcile(_mapped(a.kwargs, self.true), _mapped(b.kwargs, self.false))
        copy = self._copy(a, self.true, args, kwargs)
        copy.meta["guard"] = guard
        copy.meta["uneven"] = _length(a) != _length(b) or a.meta.get("uneven") or b.meta.get("uneven")
        copy.meta["names"] = list(dict.fromkeys([*a.meta.get("names", ()), *b.meta.get("names", ())]))
        self.true[a] = self.false[b] = copy

    def _decided(self, a: fx.Node, b: fx.Node) -> None:
        """A branch that the two traces took differently: the condition, or a check on either side."""
        if self.condition is None and isinstance(a.args[0], fx.Node | str):
            self.condition = self.true[a.args[0]] if isinstance(a.args[0], fx.Node) else a.args[0]
        else:
            self._only(a, self.true, True)
            self._only(b, self.false, False)

    def _common(self, a: fx.Node, b: fx.Node) -> tuple[Guard, ...] | None:
        """The guard of a node of both traces: where one trace has a further condition, it is made to hold in the other.

        None where each has a condition that the other lacks.
        """
        ours, theirs = moved(a.meta.get("guard", ()), self.true), moved(b.meta.get("guard", ()), self.false)
        longer, shorter = (ours, theirs) if len(ours) >= len(theirs) else (theirs, ours)
        further = [g for g in longer if g not in shorter]
        if len(longer) - len(further) != len(shorter) or not all(isinstance(g.condition, fx.Node) for g in further):
            return None
        return tuple(self._widened(g, longer is ours) if g in further else g for g in longer)

    def _widened(self, guard: Guard, true: bool) -> Guard:
        """A guard that only one trace has, whose condition takes the guard's own branch in the other."""
        table = self.true if true else self.false
        own = guard.condition
        if own in self.widened:
            return guard
        condition = self._choice(own, guard.branch) if true else self._choice(guard.branch, own)
        table.update({node: condition for node, mapped in table.items() if mapped is own})
        self.widened.add(condition)
        return Guard(condition, guard.branch)

    def _is_size(self, node: fx.Node) -> bool:
        """A number that another trace knew as a constant: reading or checking it is free, whatever the branch."""
        return self.condition is None and (is_number(node) or _is_check_of_sizes(node))

    def _copy(self, node: fx.Node, table: Table, args: Any, kwargs: Any) -> fx.Node:
        copy = self.graph.create_node(node.op, node.target, args, kwargs)
        copy.meta.update(node.meta)
        copy.meta["guard"] = moved(node.meta.get("guard", ()), table)
        return copy

    def _reconcile(self, a: Any, b: Any) -> Any:
        """One value that is `a` where the condition holds and `b` elsewhere."""
        if type(a) is type(b) and isinstance(a, (tuple, list)) and len(a) == len(b):
            return rebuilt(a, (self._reconcile(x, y) for x, y in zip(a, b, strict=True)))
        if isinstance(a, Mapping) and isinstance(b, Mapping) and set(a) == set(b):
            return {k: self._reconcile(a[k], b[k]) for k in a}
        if isinstance(a, slice) and isinstance(b, slice):
            return slice(*(self._reconcile(x, y) for x, y in zip(_bounds(a), _bounds(b), strict=True)))
        if a is b or (type(a) is type(b) and a == b and not isinstance(a, fx.Node)):
            return a
        if isinstance(a, int) and isinstance(b, int) and Size in (type(a), type(b)) and a == b:
            return int(a)
        if isinstance(a, LiftedStr) and isinstance(b, LiftedStr) and a.source == b.source:
            return a
        return self._general(a, b) or self._choice(a, b)

    def _general(self, a: Any, b: Any) -> fx.Node | None:
        """The one of two values that holds in both branches: a parameter that is None, a size that was constant.

        A parameter that is handed on unread is so whatever the branch.
        """
        for one, other in ((a, b), (b, a)):
            if not isinstance(one, fx.Node):
                continue
            is_parameter = one.meta.get("handed") or self._is_given(one)
            is_size = is_number(one) and isinstance(other, int)
            if (is_parameter and other is None) or (is_size and not one.meta.get("guard")):
                return one
        return None

    def _is_given(self, node: fx.Node) -> bool:
        """Whether the condition is that a parameter is given."""
        return node.op == "placeholder" and self.condition == f"{node.target} is not None"

    def _choice(self, a: Any, b: Any) -> fx.Node:
        if self.condition is None:
            fail(f"what is {told(a)} in some calls is {told(b)} in others, and nothing says in which")
        for side, value, other in ((True, a, b), (False, b, a)):
            if self._makes(other, side, value) and self._leaves(other, other.args[0]):
                return self._freed(other)
        for one, other in ((a, b), (b, a)):
            if isinstance(one, bool) and _asks_facts(self.condition) and self._is_free(other):
                self._freed(other)
        nodes: list[fx.Node] = list(self.graph.nodes)
        for node in nodes:
            if node.target is choose and node.args == (self.condition, a, b):
                return node
        after = self._latest_of_region(a, b) or nodes[-1]
        with self.graph.inserting_after(after):
            node = self.graph.call_function(choose, (self.condition, a, b))
        source = a if isinstance(a, fx.Node) else b
        meta = source.meta if isinstance(source, fx.Node) else {}
        guard = self._shared_guard(a, b)
        names = [] if isinstance(a, bool) or isinstance(b, bool) else list(meta.get("names", ()))
        value = meta.get("value", (a, a))
        key = ("choose", str(self.condition), isinstance(value[0], torch.Tensor))
        node.meta.update(key=key, names=names, guard=guard, scope=(), value=value)
        return node

    def _makes(self, choice: Any, side: bool, value: Any) -> bool:
        """Whether a choice on a widened condition is this value where the condition that widened it takes this side."""
        if not isinstance(choice, fx.Node) or choice.target is not choose:
            return False
        condition, *values = choice.args
        if not isinstance(condition, fx.Node) or condition not in self.widened:
            return False
        widened_by, *there = condition.args
        own = there[0 if side else 1]
        return widened_by is self.condition and isinstance(own, bool) and values[0 if own else 1] is value

    def _leaves(self, node: fx.Node, widened: fx.Node) -> bool:
        """Whether what a node reads is made outside the branch too: facts, and what the widened condition guards."""
        return all(
            self._is_free(n) or (any(g.condition is widened for g in n.meta["guard"]) and self._leaves(n, widened))
            for n in node.all_input_nodes
            if self._guarded(n)
        )

    def _is_free(self, node: Any) -> bool:
        """Whether a node asks for sizes or dtypes of what is there whatever the branch."""
        if not isinstance(node, fx.Node) or not node.args or not _is_fact(node):
            return False
        return all(self._is_free(n) for n in node.all_input_nodes if self._guarded(n))

    def _freed(self, node: fx.Node) -> fx.Node:
        """A node, out of the branch, with what it reads."""
        for read in filter(self._guarded, node.all_input_nodes):
            self._freed(read)
        node.meta["guard"] = tuple(g for g in node.meta["guard"] if g.condition != self.condition)
        return node

    def _shared_guard(self, a: Any, b: Any) -> tuple[Guard, ...]:
        """What both values stand under beside the condition itself; a choice between them is made only there.

        A widened guard that holds anyway where one of them is taken is none of that one's.
        """
        sides = [(side, n.meta.get("guard", ())) for side, n in ((True, a), (False, b)) if isinstance(n, fx.Node)]
        own = [(s, [g for g in gs if g.condition != self.condition and not self._holds(g, s)]) for s, gs in sides]
        most = max((guards for _, guards in own), key=len, default=[])
        shared = all(g in guards or self._holds(g, side) for side, guards in own for g in most)
        return self._inside(tuple(most) if shared and all(g in most for _, guards in own for g in guards) else ())

    def _holds(self, guard: Guard, side: bool) -> bool:
        """Whether a widened guard says nothing on one side of the condition: it holds there always."""
        if not isinstance(guard.condition, fx.Node) or guard.condition not in self.widened:
            return False
        widened_by, *there = guard.condition.args
        return bool(widened_by == self.condition) and there[0 if side else 1] is guard.branch

    def _latest_of_region(self, a: Any, b: Any) -> fx.Node | None:
        """The last node of the conditional region that makes `a` or `b`, or None where neither is conditional."""
        guarded = [n for n in (a, b) if isinstance(n, fx.Node) and self._guarded(n)]
        if not guarded:
            return None
        order: list[fx.Node] = list(self.graph.nodes)
        last = max(order.index(n) for n in guarded)
        while last + 1 < len(order) and (self._guarded(order[last + 1]) or order[last + 1].target is choose):
            last += 1
        return order[last]

    def _guarded(self, node: fx.Node) -> bool:
        return any(guard.condition == self.condition for guard in node.meta.get("guard", ()))


def _length(node: fx.Node) -> int | None:
    """How many items what a node returns has."""
    value = dataflow.example(node)
    return len(value) if isinstance(value, tuple) else None


def _is_check_of_sizes(node: fx.Node) -> bool:
    """A comparison of sizes that had to come out one way; where all of them were constants it did."""
    compared = node.args[0] if node.target is assume else None
    return isinstance(compared, fx.Node) and bool(compared.args) and all(map(is_number, compared.all_input_nodes))


def _asks_facts(condition: Condition) -> bool:
    return isinstance(condition, fx.Node) and all(map(_is_fact, condition.all_input_nodes))


def _is_fact(node: fx.Node) -> bool:
    return isinstance(dataflow.example(node), int | torch.dtype)


def _mapped(value: Any, table: Table) -> Any:
    return fx.node.map_arg(value, lambda n: table[n])


def _bounds(value: slice) -> tuple[Any, Any, Any]:
    return value.start, value.stop, value.step
