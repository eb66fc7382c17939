"""The variables of a body: the source's own names, reused once the value they held is dead."""

from __future__ import annotations

import keyword
import operator
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from torch import fx

from peftc.emit.blocks import Body, Branch, Item, Statement, flat
from peftc.emit.hints import continued, fallback, hints, own_names
from peftc.emit.liveness import Lives, Span, meet
from peftc.graph.branches import assume, choose, inputs

RESERVED = frozenset({"self", "base", "torch", "nn", "math", "super", "_", *keyword.kwlist})


@dataclass(eq=False)
class Variable:
    """The nodes that share one name, from the first definition on, and when it must not be another's."""

    nodes: list[fx.Node]
    start: int
    spans: list[Span]
    name: str = ""
    hints: list[str] = field(default_factory=list)


class Names:
    """node -> the name of its variable; `aliases` are the assignments that a branch needs for a chosen value."""

    def __init__(self, graph: fx.Graph, body: Body, avoid: Iterable[str]) -> None:
        self._body = body
        self._avoid = RESERVED | set(avoid)
        self._uses = _uses(graph, body)
        self._defined = {n: 0 for n in graph.nodes if n.op == "placeholder"} | dict(_definitions(body.items))
        self._lives = Lives(body)
        self._variables = self._grouped()
        self.aliases: dict[fx.Node, str] = {}
        self._of = {n: v for v in self._variables for n in v.nodes}
        self._allocate()

    def __getitem__(self, node: fx.Node) -> str:
        return self._of[node].name

    def used(self, node: fx.Node) -> bool:
        return bool(self._uses.get(node)) or node.op == "placeholder" or len(self._of[node].nodes) > 1

    def _grouped(self) -> list[Variable]:
        groups: dict[fx.Node, list[fx.Node]] = {n: [n] for n in self._defined}
        for item in flat(self._body.items):
            if isinstance(item, Branch):
                for phi in item.phis:
                    self._join(phi, groups)
        unique = {id(g): g for g in groups.values()}
        return [self._variable(g) for g in unique.values()]

    def _join(self, phi: fx.Node, groups: dict[fx.Node, list[fx.Node]]) -> None:
        """Let a phi share its variable with the values it chooses between, where none is needed afterwards."""
        for value in (phi.args[2], phi.args[1]):
            if not isinstance(value, fx.Node) or value not in groups or groups[value] is groups[phi]:
                continue
            if self._meet(groups[value], groups[phi]):
                continue
            if len(groups[value]) > 1 and value.op != "placeholder" and not _is_phi_of(groups[value], value):
                continue
            groups[phi].extend(groups[value])
            for member in groups[value]:
                groups[member] = groups[phi]

    def _meet(self, values: Sequence[fx.Node], others: Sequence[fx.Node]) -> bool:
        """Whether one of these values is needed where one of the others has taken its name."""
        ours, theirs = ([span for n in nodes for span in self._spans(n)] for nodes in (values, others))
        return any(meet(one, values, other, others) for one in ours for other in theirs)

    def _spans(self, node: fx.Node) -> Iterator[Span]:
        return self._lives.spans(node, self._defined[node], self._uses.get(node, []))

    def _variable(self, nodes: list[fx.Node]) -> Variable:
        start = min(self._defined[n] for n in nodes)
        spans = [span for n in nodes for span in self._spans(n)]
        ordered = sorted(nodes, key=lambda n: self._defined[n])
        return Variable(ordered, start, spans, hints=hints(ordered))

    def _allocate(self) -> None:
        """Give each variable its first free hint; one in the way moves to another name of its own if it has one."""
        self._taken = [Variable([], 0, [Span(0, last)], name) for name, last in _asked(self._body).items()]
        for variable in sorted(self._variables, key=lambda v: v.start):
            variable.hints += self._further(variable)
            if variable.nodes[0].op != "placeholder":
                self._name(variable)
            else:
                variable.name = variable.hints[0]
            self._taken.append(variable)

    def _further(self, variable: Variable) -> list[str]:
        """The names of what a variable's values were made of, if that is what they still are; the words for how."""
        found = []
        for node in variable.nodes:
            source = continued(node)
            while source is not None and source not in self._of:
                source = continued(source)
            found += [self._of[source].name] if source is not None and self._of[source].name else []
        told = (operator.getitem, choose) if variable.hints else ()
        words = [fallback(n) for n in variable.nodes if n.target not in told]
        return found + words

    def _name(self, variable: Variable) -> None:
        blocking = self._blocking(variable, variable.hints[0])
        if len(blocking) == 1 and (other := self._other_name(blocking[0])):
            self._rename(blocking[0], other)
        names = _candidates(variable.hints)
        variable.name = next(n for n in names if n not in self._avoid and not self._blocking(variable, n))

    def _blocking(self, variable: Variable, name: str) -> list[Variable]:
        return [v for v in self._taken if v.name == name and _overlap(v, variable)]

    def _other_name(self, variable: Variable) -> str | None:
        if any(by is n for n in variable.nodes if n.op == "placeholder" for _, by in self._uses[n]):
            return None
        own = [h for n in variable.nodes for h in own_names(n)]
        free = (h for h in own if h not in self._avoid and h != variable.name and not self._blocking(variable, h))
        return next(free, None)

    def _rename(self, variable: Variable, name: str) -> None:
        """A second name for a value whose first one is wanted again: an assignment where it is a parameter."""
        if variable.nodes[0].op == "placeholder":
            self.aliases[variable.nodes[0]] = name
        variable.name = name


def _asked(body: Body) -> dict[str, int]:
    """Every word of the conditions that checks write out, a parameter's name perhaps, and the last that has it."""
    checks = [item for item in flat(body.items) if isinstance(item, Statement) and item.node.target is assume]
    texts = [(item.index, item.node.args[0]) for item in checks]
    return {word: index for index, text in texts if isinstance(text, str) for word in re.findall(r"\w+", text)}


def _is_phi_of(group: list[fx.Node], value: fx.Node) -> bool:
    return value in group and all(n is value or n in value.all_input_nodes for n in group)


def _overlap(a: Variable, b: Variable) -> bool:
    if a.start == b.start:
        return True
    return any(meet(one, a.nodes, other, b.nodes) for one in a.spans for other in b.spans)


def _candidates(hints: list[str]) -> Iterator[str]:
    yield from hints
    number = 2
    while True:
        yield f"{hints[0]}_{number}"
        number += 1


def _definitions(items: Iterable[Item]) -> Iterator[tuple[fx.Node, int]]:
    for item in flat(list(items)):
        if isinstance(item, Statement):
            yield from ((n, item.index) for n in item.defines() if n.op != "placeholder")
        else:
            yield from ((phi, item.ends[1] + 1) for phi in item.phis)


def _uses(graph: fx.Graph, body: Body) -> dict[fx.Node, list[tuple[int, fx.Node]]]:
    """node -> where it is read: (statement's index, reader), through the expressions that are folded in."""
    uses: dict[fx.Node, list[tuple[int, fx.Node]]] = {n: [] for n in graph.nodes}
    placeholders = {str(n.target): n for n in graph.nodes if n.op == "placeholder"}

    def read(node: fx.Node, index: int, reader: fx.Node) -> None:
        uses[node].append((index, reader))
        if node in body.inline:
            _arguments(node, index, reader)

    def _arguments(node: fx.Node, index: int, reader: fx.Node) -> None:
        for text in (a for a in node.args if isinstance(a, str)):
            for name in set(re.findall(r"\w+", text)) & set(placeholders):
                uses[placeholders[name]].append((index, reader))
        for given in inputs((node.args, node.kwargs)):
            read(given, index, reader)

    for item in flat(body.items):
        if isinstance(item, Statement):
            if item.node.op == "placeholder":
                uses[item.node].append((item.index, item.node))
            else:
                _arguments(item.node, item.index, item.node)
            continue
        if isinstance(item.condition, fx.Node):
            read(item.condition, item.index, item.condition)
        else:
            for name in set(re.findall(r"\w+", item.condition)) & set(placeholders):
                uses[placeholders[name]].append((item.index, placeholders[name]))
        for phi in item.phis:
            for value, end in zip(phi.args[1:], item.ends, strict=True):
                if isinstance(value, fx.Node):
                    uses[value].append((end + 1, phi))
    return uses
