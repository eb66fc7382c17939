"""A unit's graph: one forward traced under every scenario that reaches it, training and not, and merged."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

from torch import fx, nn

from peftc.trace.record.attention_choice import attending_by, implementation
from peftc.trace.record.feeds import parameters
from peftc.trace.record.memo import Remembered
from peftc.trace.record.observed import Call
from peftc.trace.record.source import raised
from peftc.trace.tracer.arguments import (
    arguments_of,
    gives_more,
    having,
    is_given,
    sizes_of,
    varies_more,
    with_added_masks,
    without,
)
from peftc.trace.tracer.assumed import check_parameters, giving, keys, part
from peftc.trace.tracer.frames import is_user
from peftc.trace.tracer.merge import merge, merged_by_decisions
from peftc.trace.tracer.patches import Session
from peftc.trace.tracer.tracer import UNTRACEABLE, Tracer
from peftc.trace.tracer.values import Argument, Known, Learnt, TraceFailure
from peftc.trace.tracer.ways import (
    MOST,
    Against,
    asks_kind,
    asks_value,
    compared,
    decisions,
    flags,
    further_ways,
    inlined,
    is_number,
    outcomes,
)

TRAINING = "self.training"
EAGER = 'self.config._attn_implementation == "eager"'


@dataclass(frozen=True, eq=False)
class UnitTracer:
    """Traces one module: `leaves` stay calls, `calls` are what it was seen to be called with.

    `widely`: flags go both ways, and what is no more than handed on may be given where no call does.
    """

    module: nn.Module
    leaves: frozenset[nn.Module]
    calls: Sequence[Call]
    session: Session
    elsewhere: Callable[[nn.Module], Iterable[Call]] = lambda module: ()
    remembered: dict[Hashable, Remembered] = field(default_factory=lambda: defaultdict(Remembered))
    traced: dict[Hashable, fx.Graph] = field(default_factory=dict)
    known: Known = field(default_factory=Known)
    widely: bool = True

    def graph(self) -> fx.Graph:
        """One graph of the forward over every scenario seen, training and not."""
        self._check_called()
        try:
            return self._whole()
        except Learnt as found:
            return self._knowing(found).graph()
        except TraceFailure:
            if not self.widely:
                raise
            return replace(self, widely=False).graph()

    def sketch(self) -> fx.Graph:
        """The graph of the first call alone: enough to tell two modules apart."""
        self._check_called()
        try:
            return self._made(self.calls[0], False)
        except Learnt as found:
            return self._knowing(found).sketch()

    def _check_called(self) -> None:
        if not self.calls:
            raise TraceFailure("it is never called: its model may run its forward directly")

    def _knowing(self, found: Learnt) -> UnitTracer:
        return replace(self, known=self.known.with_(found.known), traced={})

    def _whole(self) -> fx.Graph:
        attentions = self._attentions()
        graph = self._merged(self._distinct, attentions)
        if further := self._beyond(graph):
            graph = self._widened(graph, further, attentions)
        trace = partial(self._trace, training=False)
        handed = check_parameters(graph, self.module, self.calls, self.sketch(), trace)
        return self._giving(handed)._whole() if handed and self.widely else graph

    def _giving(self, names: frozenset[str]) -> UnitTracer:
        """One whose calls give these parameters, which all of them leave out."""
        calls, elsewhere = [giving(call, names) for call in self.calls], self.elsewhere
        return replace(self, calls=calls, elsewhere=lambda m: (giving(c, names) for c in elsewhere(m)), traced={})

    def _beyond(self, graph: fx.Graph) -> list[Call]:
        """Calls at other sizes that decide a comparison of sizes otherwise than all examples do."""
        found, decided = [], compared(graph)
        for call in self.elsewhere(self.module) if decided else ():
            try:
                taken = outcomes(self._once(call, False))
            except Learnt:
                raise
            except UNTRACEABLE:
                continue
            if any(taken.get(key, outcome) != outcome for key, outcome in decided.items()):
                found.append(call)
        return found

    def _widened(self, graph: fx.Graph, further: Sequence[Call], attentions: tuple[str | None, ...]) -> fx.Graph:
        """The graph of further calls too; as it was, where nothing tells these apart: its checks refuse them."""
        try:
            return self._merged([*self._distinct, *further], attentions)
        except Learnt:
            raise
        except TraceFailure as failure:
            seen, other = (inlined(self._once(c, False) for c in calls) for calls in (self._distinct, further))
            if unlike := {path for path, ways in other.items() if not ways <= seen.get(path, ways)}:
                raise Learnt(Known(frozenset(unlike)), failure) from failure
            return graph

    def _attentions(self) -> tuple[str | None, ...]:
        """The attentions under which the forward itself goes different ways: the base's own, and eager."""
        own = implementation(self.module)
        if own in (None, "eager"):
            return (own,)
        eager = self._made(self.calls[0], False, "eager")
        return ("eager", own) if keys(eager) != keys(self.sketch()) else (own,)

    @cached_property
    def _handed(self) -> frozenset[str]:
        """The parameters that some calls leave out, and that are handed on unread."""
        optional = [n for n in parameters(self.module) if {is_given(c, n) for c in self.calls} == {True, False}]
        first = {n: next(c for c in self.calls if is_given(c, n)) for n in optional}
        return frozenset(n for n in optional if self._handed_on(first[n], n))

    @cached_property
    def _distinct(self) -> list[Call]:
        """The calls without those that only leave out parameters which are handed on unread."""
        sizes = [(call, sizes_of(call)) for call in self.calls]
        return [c for c, own in sizes if not any(gives_more(other, own, self._handed) for _, other in sizes)]

    def _handed_on(self, call: Call, name: str) -> bool:
        """Whether the forward does the same without this parameter, but for handing on None instead."""
        return all(self._unread(call, name, attention) for attention in self._attentions())

    def _unread(self, call: Call, name: str, attention: str | None) -> bool:
        try:
            one = self._made(call, False, attention)
            other = self._trace(arguments_of(self.module, without(call, name)), False, attention)
        except UNTRACEABLE:
            return False
        return not part(one, other, name)

    def _merged(self, calls: Sequence[Call], attentions: tuple[str | None, ...]) -> fx.Graph:
        """Split at the first parameter that only some of the calls give, then at what was computed."""
        for name in (n for n in parameters(self.module) if n not in self._handed):
            sides = [[c for c in calls if is_given(c, name) is given] for given in (True, False)]
            if all(sides):
                pairs = zip(sides, reversed(sides), strict=True)
                true, false = (self._more_generally(own, other, name, attentions) for own, other in pairs)
                return merge(true, false, f"{name} is not None")
        graphs = [merged_by_decisions([g for call in calls for g in self._branches(call, a)]) for a in attentions]
        return graphs[0] if len(graphs) == 1 else merge(graphs[0], graphs[1], EAGER)

    def _more_generally(
        self, calls: Sequence[Call], others: Sequence[Call], but: str, attentions: tuple[str | None, ...]
    ) -> fx.Graph:
        """The graph of calls, and of such that leave out what each of them gives, or give what none of them does.

        That is, where some of the others do so.
        """
        names = [n for n in parameters(self.module) if n != but and n not in self._handed]
        only = [n for n in names if all(is_given(c, n) for c in calls) and not all(is_given(c, n) for c in others)]
        givers = {n: next((c for c in others if is_given(c, n)), None) for n in names}
        lacked = [n for n in names if not any(is_given(c, n) for c in calls)]
        further = [without(calls[0], n) for n in only]
        further += [having(calls[0], n, giver) for n in lacked if (giver := givers[n])]
        if further:
            with suppress(*UNTRACEABLE):
                return self._merged([*calls, *further], attentions)
        return self._merged(calls, attentions)

    def _branches(self, call: Call, attention: str | None) -> list[fx.Graph]:
        """The graph of one call, and of every other way through its branches on a kind: examples have only one.

        Where a mask of booleans cannot go another way, one that is added to the scores may.
        """
        ways, failed = self._ways(call, attention)
        graphs = [self._call(call, attention, way) for way in ways]
        added = with_added_masks(call) if failed else None
        if added is not None:
            with suppress(*UNTRACEABLE):
                graphs.append(self._call(added, attention, frozenset()))
        return graphs

    def _ways(self, call: Call, attention: str | None) -> tuple[list[Against], bool]:
        """The ways through the branches that the examples leave open; whether one has no trace, so a check stays."""
        ways: list[Against] = [frozenset()]
        sketches, failed = {ways[0]: self._once(call, False, attention)}, False
        turned = flags(sketches[ways[0]]) if self.widely else []
        for way in ways:
            kinds = decisions(sketches[way & frozenset(turned)], asks_kind)
            values = decisions(sketches[way], asks_value)
            for further in further_ways([*turned, *kinds, *values], way):
                try:
                    sketches[further] = self._once(call, False, attention, further)
                    ways.append(further)
                except UNTRACEABLE:
                    failed = failed or not further <= {*turned}
            if len(ways) > 2**MOST and turned:
                raise TraceFailure("its flags leave too many ways open")
            if len(ways) > 2**MOST:
                return ways[:1], False
        return ways, failed

    def _call(self, call: Call, attention: str | None, against: Against) -> fx.Graph:
        """The graph of one call, training or not."""
        train, evaluate = (self._once(call, training, attention, against) for training in (True, False))
        graph = merge(train, evaluate, TRAINING)
        for node in graph.nodes:
            node.meta["handed"] = node.op == "placeholder" and node.target in self._handed
        return graph

    def _once(
        self, call: Call, training: bool, attention: str | None = None, against: Against = frozenset(),
        below: tuple[Call, ...] = (),
    ) -> fx.Graph:  # fmt: skip
        """The trace of a call; what varies in a call of more varying sizes is no constant in this one either."""
        return self._made(call, training, attention, against, self._varying(call, training, attention, against, below))

    def _varying(
        self, call: Call, training: bool, attention: str | None, against: Against, below: tuple[Call, ...]
    ) -> Against:
        """The keys of what must stay a number here, though both examples agree on it: it varies in calls of more sizes.

        `below` are the calls that asked: of two, each may vary where the other does not.  For a call beside those of
        the examples the sizes count themselves, as (parameter, axis): it may read them where no other call comes.
        """
        others = [other for other in self._distinct if other not in below]
        wider = [other for other in others if varies_more(sizes_of(other), sizes_of(call))]
        same = [self._once(other, training, attention, against, (*below, call)) for other in wider]
        keys = {n.meta["key"] for graph in same for n in graph.nodes if is_number(n)}
        further = wider if call not in self._distinct else []
        axes = {(name, i) for c in further for name, axes in sizes_of(c).items() for i, v in enumerate(axes) if v}
        return frozenset(keys | axes)

    def _made(
        self, call: Call, training: bool, attention: str | None = None, against: Against = frozenset(),
        varying: Against = frozenset(),
    ) -> fx.Graph:  # fmt: skip
        """The trace of one of the unit's calls, made once."""
        key = (call, training, attention or implementation(self.module), against, varying)
        if key not in self.traced:
            self.traced[key] = self._trace(arguments_of(self.module, call), training, attention, against, varying)
        return self.traced[key]

    def _trace(
        self, arguments: list[Argument], training: bool, attention: str | None = None,
        against: Against = frozenset(), varying: Against = frozenset(),
    ) -> fx.Graph:  # fmt: skip
        """One trace; the decisions of `against` go the other way."""
        remembered = self.remembered[training, attention]
        tracer = Tracer(self.module, self.leaves, against, remembered, self.known, varying)
        before = [(m, m.training) for m in self.module.modules()]
        self.module.train(training)
        try:
            with attending_by(self.module, attention), self.session.tracing(tracer):
                graph = tracer.trace(arguments)
        except TraceFailure:
            raise
        except UNTRACEABLE as error:
            raise TraceFailure(raised(error, is_user)) from error
        finally:
            for m, mode in before:
                m.training = mode
        if tracer.kept:
            raise Learnt(Known(frozenset(tracer.kept)), f"{type(self.module).__name__} does not follow {tracer.kept}")
        return graph
