"""When a value is needed: from where it is made to where it is read, but for the other side of a branch."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import fx

from peftc.emit.blocks import Body, Branch, flat
from peftc.graph.branches import choose


@dataclass(frozen=True)
class Span:
    """Indices of statements between which a name is taken by a node; the values in `but` may share it."""

    start: int
    end: int
    but: frozenset[fx.Node] = frozenset()
    node: fx.Node | None = None


def meet(one: Span, of_one: Collection[fx.Node], other: Span, of_other: Collection[fx.Node]) -> bool:
    """Whether two spans need two names, given the nodes that each belongs to."""
    apart = one.end <= other.start or other.end <= one.start or _exclude(_sides(one.node), _sides(other.node))
    return not apart and one.but.isdisjoint(of_other) and other.but.isdisjoint(of_one)


class Lives:
    """The branches of a body, as what they tell about the lives of its values."""

    def __init__(self, body: Body) -> None:
        self._branches = [item for item in flat(body.items) if isinstance(item, Branch)]
        self._of = {phi: branch for branch in self._branches for phi in branch.phis}

    def spans(self, node: fx.Node, made: int, uses: Sequence[tuple[int, fx.Node]]) -> Iterator[Span]:
        """Where a node's name is taken: to each of its uses; a choice's where each side assigns it, too."""
        yield Span(made, made, node=node)
        for used, _ in uses:
            yield from self._parts(node, made, used)
        if branch := self._of.get(node):
            for value, end in zip(node.args[1:], branch.ends, strict=True):
                yield Span(end, end + 1, frozenset({value} if isinstance(value, fx.Node) else ()), node)

    def _parts(self, node: fx.Node, made: int, used: int) -> Iterator[Span]:
        """The indices from where a value is made to where it is used, without sides of branches where it is not needed.

        Those are the side before the one where it is used, and a side that is not run where the value is made.
        """
        start, sides = made, _sides(node)
        for branch in self._branches:
            true, false = (end + 1 for end in branch.ends)
            own = _truth(branch.condition, sides)
            if start <= branch.index and (true < used <= false or (own is False and true < used)):
                yield Span(start, branch.index, node=node)
                start = true
            if start <= true and own is True and false < used:
                yield Span(start, true, node=node)
                start = false
        yield Span(start, used, node=node)


def _sides(node: fx.Node | None) -> Mapping[str | fx.Node, bool]:
    """The conditions under which a node is made, and what they are then."""
    return {guard.condition: guard.branch for guard in node.meta.get("guard", ())} if node is not None else {}


def _exclude(ours: Mapping[str | fx.Node, bool], theirs: Mapping[str | fx.Node, bool]) -> bool:
    """Whether no run makes both of two values: some condition is true for the one and false for the other."""
    return any(
        _truth(condition, known) is (not side)
        for known, sides in ((ours, theirs), (theirs, ours))
        for condition, side in sides.items()
    )


def _truth(condition: object, sides: Mapping[str | fx.Node, bool]) -> bool | None:
    """What a condition is where some others are decided; None where that does not tell."""
    if isinstance(condition, bool):
        return condition
    if not isinstance(condition, (str, fx.Node)):
        return None
    if condition in sides or not isinstance(condition, fx.Node) or condition.target is not choose:
        return sides.get(condition)
    asked, true, false = condition.args
    side = _truth(asked, sides)
    return None if side is None else _truth(true if side else false, sides)
