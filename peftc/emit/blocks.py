"""The statements of a body: which nodes stand alone, which fold into their user, and which share an `if`."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from peftc.emit.tuples import packed
from peftc.graph.branches import Guard, assume, choose, enter, inputs, is_flag, leave
from peftc.graph.dataflow import example, is_move, name_of

CHEAP = (getattr, operator.getitem, choose)


@dataclass(eq=False)
class Statement:
    """One line: `node`, or the unpacking of it into `targets` (None where an item is not used)."""

    node: fx.Node
    targets: tuple[fx.Node | None, ...] = ()
    index: int = 0

    def defines(self) -> tuple[fx.Node, ...]:
        return tuple(t for t in self.targets if t is not None) or (self.node,)


@dataclass(eq=False)
class Branch:
    """An `if`: its condition, both bodies, and the nodes that choose between their values.

    `ends` are the indices behind the two bodies, where the chosen values get the names of the choices.
    """

    condition: str | fx.Node
    if_true: list[Item] = field(default_factory=list)
    if_false: list[Item] = field(default_factory=list)
    phis: list[fx.Node] = field(default_factory=list)
    index: int = 0
    ends: tuple[int, int] = (0, 0)


Item = Statement | Branch
Row = tuple[tuple[Guard, ...], Statement | fx.Node]


@dataclass(frozen=True, eq=False)
class Body:
    """A graph as statements: the items in order, and which nodes are expressions inside them."""

    items: list[Item]
    inline: frozenset[fx.Node]


def blocks(graph: fx.Graph) -> Body:
    """The statements of a graph, in its order."""
    phis = {n for n in graph.nodes if _is_phi(n)}
    unpacked: dict[fx.Node, tuple[fx.Node | None, ...]] = {}
    slots: set[fx.Node] = set()
    for node in graph.nodes:
        if node not in slots and (targets := _unpacking(node)) is not None:  # an item of one statement opens no other
            unpacked[node] = targets
            slots.update(t for t in targets if t is not None)
    inline = _inline(graph, phis, slots, unpacked)
    rows = _rows(graph, inline, phis, slots, unpacked)
    items = _with_conditions(_nest(rows, 0), inline)
    _number(items, 1)
    return Body(items, frozenset(inline))


def _is_phi(node: fx.Node) -> bool:
    """A choice between values of which at least one is made under the condition."""
    if node.target is not choose:
        return False
    return any(isinstance(a, fx.Node) and _under(a, node.args[0]) for a in node.args[1:])


def _under(node: fx.Node, condition: object) -> bool:
    return any(g.condition == condition for g in node.meta.get("guard", ()))


def _unpacking(node: fx.Node) -> tuple[fx.Node | None, ...] | None:
    """The items of a tuple that is only ever taken apart into named values; None where it is not."""
    indices = {user: index for user in node.users if (index := _index(user, node)) is not None}
    if not node.users or _is_phi(node) or node.target is packed or len(indices) != len(node.users):
        return None
    if node.meta.get("uneven"):
        return None
    value = node.meta.get("value", ((None,) * (1 + max(indices.values())),))[0]
    if not isinstance(value, (tuple, list)):
        return None
    items: list[fx.Node | None] = [None] * len(value)
    for user, index in indices.items():
        moved = user.meta.get("guard") != node.meta.get("guard") and node.op != "placeholder"
        if items[index] is not None or moved:
            return None
        items[index] = user
    if isinstance(value, torch.Size) and not any(item is not None and _hints(item) for item in items):
        return None
    if node.target is getattr and len(indices) == 1:
        return None  # one size of a shape is an item of it
    return tuple(items)


def _index(user: fx.Node, node: fx.Node) -> int | None:
    """Which item of a tuple a node reads, or None where it reads something else."""
    if user.target is not operator.getitem or user.args[0] is not node:
        return None
    index = user.args[1]
    return index if isinstance(index, int) and type(index) is int else None


def _hints(node: fx.Node) -> bool:
    return bool(node.meta.get("name") or node.meta.get("names"))


def _inline(graph: fx.Graph, phis: set[fx.Node], slots: set[fx.Node], unpacked: dict[fx.Node, Any]) -> set[fx.Node]:
    """Nodes that fold into the statement that uses them: attributes, cheap reads, and unnamed single-use values."""
    inline: set[fx.Node] = set()
    root: dict[fx.Node, fx.Node] = {}
    order = {n: i for i, n in enumerate(graph.nodes)}
    chosen = {a for p in phis for a in p.args[1:] if isinstance(a, fx.Node)}
    asked = {guard.condition for n in graph.nodes for guard in n.meta.get("guard", ())}
    for node in reversed(list(graph.nodes)):
        root[node] = node
        if node.op in ("placeholder", "output") or node in phis or node in slots or node in unpacked or node in chosen:
            continue
        if node.op == "get_attr" or _is_cheap_read(node) or _is_spread(node):
            inline.add(node)
        elif not (node.target is choose and node in asked) and _foldable(node, inline, root, order):
            inline.add(node)
            root[node] = root[next(iter(node.users))]
    return inline


def _is_cheap_read(node: fx.Node) -> bool:
    """A read of sizes or attributes: free, and the same wherever it stands."""
    if _hints(node):
        return False
    value = example(node)
    return node.target is getattr or is_flag(node) or (node.target is operator.getitem and isinstance(value, int))


def _foldable(node: fx.Node, inline: set[fx.Node], root: dict[fx.Node, fx.Node], order: dict[fx.Node, int]) -> bool:
    if len(node.users) != 1 or _hints(node) or node.target is assume or node.meta.get("comment"):
        return False
    user = next(iter(node.users))
    if user.meta.get("guard", ()) != node.meta.get("guard", ()) or _times_used(user, node) != 1:
        return node.target is choose and _times_used(user, node) == 1
    target, walk = root[user], node.next
    if node.target is choose:
        return True
    while walk is not target:
        passed = root[walk] is target or walk in inline or walk.target in CHEAP
        if not passed and not (_is_view(node) and _is_pure(walk)):
            return False
        walk = walk.next
    return order[target] > order[node]


def _is_view(node: fx.Node) -> bool:
    """Whether a node only says how to see a tensor, or what size it has."""
    return is_move(node) or name_of(node) == "size"


def _is_pure(node: fx.Node) -> bool:
    """Whether a node changes no tensor that is there already: a function, or a tensor's method, that says so."""
    name = name_of(node)
    changes = node.op == "call_module" or not name or name.endswith("_") or node.target is operator.setitem
    return not changes and isinstance(example(node), (torch.Tensor, int))


def _is_spread(node: fx.Node) -> bool:
    """Sizes that one call has all of, in their order: they stand there behind a star."""
    sizes, items = example(node), list(node.users)
    if not isinstance(sizes, torch.Size) or [_index(item, node) for item in items] != [*range(len(sizes))]:
        return False
    return len({user for item in items for user in item.users}) == 1 and not any(map(_hints, (node, *items)))


def _times_used(user: fx.Node, node: fx.Node) -> int:
    return inputs((user.args, user.kwargs)).count(node)


def _rows(
    graph: fx.Graph, inline: set[fx.Node], phis: set[fx.Node], slots: set[fx.Node], unpacked: dict[fx.Node, Any]
) -> list[Row]:
    """Every statement with its guard; a phi stands as its bare node."""
    rows: list[Row] = []
    opened: set[fx.Node] = set()
    for node in graph.nodes:
        guard = node.meta.get("guard", ())
        if node in phis:
            rows.append((guard, node))
        elif node in slots:
            source = node.args[0]
            if source.op == "placeholder" and source not in opened:
                opened.add(source)
                rows.append((guard, Statement(source, unpacked[source])))
        elif node.op != "placeholder" and node not in inline and node.target not in (enter, leave):
            rows.append((guard, Statement(node, unpacked.get(node, ()))))
    return rows


def _nest(rows: Sequence[Row], depth: int) -> list[Item]:
    """Runs under one condition become a branch; the phis behind them join it."""
    items: list[Item] = []
    groups: list[tuple[Any, list[Row]]] = []
    for guard, row in rows:
        condition: Any = guard[depth].condition if len(guard) > depth else None
        if isinstance(row, fx.Node) and condition is None:
            condition = row.args[0]
        if groups and groups[-1][0] == condition:
            groups[-1][1].append((guard, row))
        else:
            groups.append((condition, [(guard, row)]))
    for condition, members in groups:
        if condition is None:
            items.extend(row for _, row in members if isinstance(row, Statement))
            continue
        items.append(_branch(condition, members, depth))
    return items


def _branch(condition: str | fx.Node, members: Sequence[Row], depth: int) -> Branch:
    phis = [row for guard, row in members if isinstance(row, fx.Node) and len(guard) <= depth]
    inside = [(guard, row) for guard, row in members if len(guard) > depth]
    true = _nest([(g, r) for g, r in inside if g[depth].branch], depth + 1)
    false = _nest([(g, r) for g, r in inside if not g[depth].branch], depth + 1)
    return Branch(condition, true, false, phis)


def _with_conditions(items: list[Item], inline: set[fx.Node]) -> list[Item]:
    """Unnamed conditions move into the one `if` behind them that asks for them."""
    asked = [item.condition for item in flat(items) if isinstance(item, Branch)]
    kept: list[Item] = []
    followers: list[Item | None] = [*items[1:], None]
    for item, behind in zip(items, followers, strict=False):
        if isinstance(item, Branch):
            item.if_true, item.if_false = (_with_conditions(side, inline) for side in (item.if_true, item.if_false))
        elif isinstance(behind, Branch) and _moves(item.node, behind) and asked.count(item.node) == 1:
            inline.add(item.node)
            continue
        kept.append(item)
    return kept


def _moves(node: fx.Node, branch: Branch) -> bool:
    """Whether a node is the branch's condition and nothing else."""
    asking = all(user in branch.phis and _times_used(user, node) == 1 for user in node.users)
    return branch.condition is node and not _hints(node) and asking


def _number(items: list[Item], start: int) -> int:
    for item in items:
        item.index = start
        start += 1
        if isinstance(item, Branch):
            true = _number(item.if_true, start)
            false = _number(item.if_false, true + 2)
            item.ends, start = (true, false), false + 2
    return start


def flat(items: Sequence[Item]) -> list[Item]:
    """Every item, those inside branches included, in order."""
    found: list[Item] = []
    for item in items:
        found.append(item)
        if isinstance(item, Branch):
            found += [*flat(item.if_true), *flat(item.if_false)]
    return found
