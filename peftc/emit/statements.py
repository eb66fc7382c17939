"""A body's forward as readable lines."""

from __future__ import annotations

import ast
import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter
from itertools import groupby

from torch import fx, nn

from peftc.emit.blocks import Branch, Item, Statement, blocks
from peftc.emit.expressions import BINARY, Globals, Printer
from peftc.emit.layout import INDENT, WIDTH, commented, indented, wrapped
from peftc.emit.literal import literal
from peftc.emit.names import Names
from peftc.emit.sizes import with_sizes
from peftc.emit.tuples import with_tuples
from peftc.graph.branches import assume
from peftc.modules import expect_given, expect_none
from peftc.rewrite.passes import copied

STARS: Mapping[object, str] = {Parameter.VAR_POSITIONAL: "*", Parameter.VAR_KEYWORD: "**"}


@dataclass(frozen=True)
class Forward:
    """`def forward(...)` as lines; the pasted functions and the imports that it needs."""

    lines: tuple[str, ...]
    functions: frozenset[str]
    globals: Mapping[str, str]


def forward(base: type[nn.Module], graph: fx.Graph, aliases: Mapping[str, str]) -> Forward:
    """The forward of a class derived from `base`; `aliases` are the import names of the base's own modules."""
    used, graph = Globals(aliases), copied(graph)
    with_sizes(graph)
    with_tuples(graph)
    body = blocks(graph)
    names = Names(graph, body, avoid=_functions(graph))
    printer = Printer(lambda n: None if n in body.inline else names[n], used)
    aliased = [f"{name} = {node.target}" for node, name in names.aliases.items()]
    first = next((i for i, item in enumerate(body.items) if not _is_check_of_call(item)), len(body.items))
    printed = _Lines(printer, names)
    statements = [*printed.items(body.items[:first]), *aliased, *printed.items(body.items[first:])]
    lines = [*wrapped(f"def forward({', '.join(_signature(base))}):"), *indented(statements)]
    return Forward(tuple(lines), frozenset(used.functions), dict(sorted(used.imports.items())))


def _is_check_of_call(item: Item) -> bool:
    """Whether a statement checks what the forward was called with, by the parameters' names."""
    return isinstance(item, Statement) and item.node.target is assume and isinstance(item.node.args[0], str)


def _functions(graph: fx.Graph) -> set[str]:
    """The names of functions that are printed bare, which no variable may take."""
    called = [n.target for n in graph.nodes if n.op == "call_function" and n.target not in BINARY]
    return {getattr(target, "__name__", "") for target in called if target not in (getattr, operator.getitem)}


def _signature(base: type[nn.Module]) -> list[str]:
    """The base's own parameters and defaults, without annotations, after `self`, whatever the base calls that."""
    _, *own = inspect.signature(base.forward).parameters.values()
    parts, keyword_only = ["self"], False
    for parameter in own:
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword_only:
            keyword_only = True
            parts.append("*")
        keyword_only = keyword_only or parameter.kind is parameter.VAR_POSITIONAL
        star = STARS.get(parameter.kind, "")
        default = "" if parameter.default is parameter.empty else f"={parameter.default!r}"
        parts.append(f"{star}{parameter.name}{default}")
    return parts


class _Lines:
    """Prints items, given the printer of expressions and the variables' names."""

    def __init__(self, printer: Printer, names: Names, width: int = WIDTH) -> None:
        self.printer, self.names, self.width = printer, names, width

    def items(self, items: Sequence[Item]) -> list[str]:
        lines: list[str] = []
        for expectation, run in groupby(items, _expects):
            if expectation is not None:
                lines += self._expected(expectation, [_condition(item)[0] for item in run])
                continue
            for item in run:
                lines += self._branch(item) if isinstance(item, Branch) else self._statement(item)
        return lines

    def _expected(self, expectation: Callable[..., None], names: Sequence[str]) -> list[str]:
        """One call that checks all parameters which no call of the base gave, or each."""
        given = ", ".join(f"{name}={name}" for name in names)
        return wrapped(f"{self.printer.function(expectation)}(self, {given})", self.width)

    def _statement(self, statement: Statement) -> list[str]:
        node = statement.node
        if node.op == "output":
            return wrapped(f"return {self._returned(node.args[0])}", self.width)
        if node.target is assume:
            return self._check(node)
        if node.target is operator.setitem:
            subject, item = (self.printer.value(node.args[i], 10) for i in (0, 2))
            return wrapped(f"{subject}[{self.printer.index(node.args[1])}] = {item}", self.width)
        value = self.printer.value(node) if node.op == "placeholder" else self.printer.node(node)
        if statement.targets:
            left = ", ".join(self._target(t) for t in statement.targets)
            left += "," if len(statement.targets) == 1 else ""
        else:
            left = self._target(node)
        lines = wrapped(value if left == "_" else f"{left} = {value}", self.width)
        return commented(lines, node.meta.get("comment"), self.width)

    def _target(self, node: fx.Node | None) -> str:
        return "_" if node is None or not self.names.used(node) else self.names[node]

    def _returned(self, value: object) -> str:
        text = self.printer.value(value)
        return text[1:-1] if isinstance(value, tuple) and len(value) > 1 else text

    def _check(self, node: fx.Node) -> list[str]:
        condition, outcome, message = node.args
        text = condition if isinstance(condition, str) else self.printer.value(condition)
        failing = negated(text) if outcome else text
        parts = [f"{message}: ", failing] if isinstance(condition, fx.Node) else [str(message)]
        whole, width = literal("".join(parts)), self.width - len(INDENT)
        if len(parts) > 1 and len(whole) > width - len(INDENT):
            raised = ["raise ValueError(", *(INDENT + literal(part) for part in parts), ")"]
        else:
            raised = wrapped(f"raise ValueError({whole})", width)
        return [*wrapped(f"if {failing}:", self.width), *indented(raised)]

    def _branch(self, branch: Branch) -> list[str]:
        inside = _Lines(self.printer, self.names, self.width - len(INDENT))
        true = inside.items(branch.if_true) + inside._assigned(branch, 1)
        false = inside.items(branch.if_false) + inside._assigned(branch, 2)
        condition = branch.condition if isinstance(branch.condition, str) else self.printer.value(branch.condition)
        if not true and not false:
            return []
        if not true:
            true, false, condition = false, [], negated(condition)
        if not true:
            return []  # each side has the value under its name already
        if not false and (inner := _only_if(true)):
            return [f"if {condition} and {inner}:", *true[1:]]
        lines = [f"if {condition}:", *indented(true)]
        return [*lines, "else:", *indented(false)] if false else lines

    def _assigned(self, branch: Branch, side: int) -> list[str]:
        """Assignments for the chosen values whose variable is not the phi's own."""
        lines = []
        for phi in branch.phis:
            value = self.printer.value(phi.args[side])
            if value != self.names[phi]:
                lines += wrapped(f"{self.names[phi]} = {value}", self.width)
        return lines


def _expects(item: Item) -> Callable[..., None] | None:
    """What checks a parameter that no call of the base gave, or each; None for any other statement."""
    name, state = _condition(item)
    return {"is not None": expect_none, "is None": expect_given}.get(state) if name.isidentifier() else None


def _condition(item: Item) -> tuple[str, str]:
    """What a statement checks of a call, in two parts: what it asks about, and what is refused of it."""
    if not isinstance(item, Statement) or not _is_check_of_call(item) or item.node.args[1]:
        return "", ""
    subject, _, state = str(item.node.args[0]).partition(" ")
    return subject, state


def _only_if(lines: Sequence[str]) -> str | None:
    """The condition of a body that is one `if` on one line without an else."""
    head, *rest = lines
    if not (head.startswith("if ") and head.endswith(":")) or not all(line.startswith("    ") for line in rest):
        return None
    condition = head[3:-1]
    return f"({condition})" if " or " in condition else condition


def negated(condition: str) -> str:
    """The opposite of a condition, as a person would write it."""
    if condition.endswith(" is not None"):
        return condition.removesuffix(" is not None") + " is None"
    written = ast.parse(condition, mode="eval").body
    for one, other in ((" != ", " == "), (" == ", " != ")):
        if isinstance(written, ast.Compare) and len(written.ops) == 1 and condition.count(one) == 1:
            return condition.replace(one, other)
    alone = isinstance(written, ast.Name | ast.Attribute | ast.Call | ast.Subscript)
    return f"not {condition}" if alone else f"not ({condition})"
