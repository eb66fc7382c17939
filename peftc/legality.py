"""What a placement may not be: refused by its method, there already, or under a gate that it cannot have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

from peftc.graph.sites import Attention, Projection, Sublayer
from peftc.hints import place_in
from peftc.selectors import Entry, Spot, Taken

Member = tuple[Entry, Spot]


def check(entries: Sequence[Taken]) -> None:
    """Complain, each to its entry, about every illegal placement."""
    for entry, spots in entries:
        for spot in spots:
            check_refusal(entry, spot, spots)
            _check_called_again(entry, spot)
        if all(entry.method.refusal(spot.site) is None for spot in spots):
            _check_gate(entry, spots)
            _check_layer_gate(entry, spots)
    _check_twice(entries)
    _check_central(entries)


def check_refusal(entry: Entry, spot: Spot, beside: Sequence[Spot] = ()) -> None:
    """Complain where a method cannot stand; `beside`, what else the entry names, may be in a tower where it can."""
    reason = entry.method.refusal(spot.site)
    if reason is not None:
        message, hint = said(reason)
        layer = spot.layer or next(iter(entry.trace.layers), None)
        there = place_in(layer, entry.method, entry.trace) if layer else None
        hints = [hint or there, _other_towers(entry, beside)]
        entry.refuse_once(message, *spot.word, hint="; ".join(filter(None, hints)) or None)


def _other_towers(entry: Entry, spots: Sequence[Spot]) -> str | None:
    """What to write where all that an entry names in some of several towers can have its method."""
    able: dict[str, bool] = {}
    for spot in spots:
        if spot.layer and entry.method.towers is None:
            stands = entry.method.refusal(spot.site) is None
            able[spot.layer.tower] = stands and able.get(spot.layer.tower, True)
    names = ", ".join(tower for tower, stands in able.items() if stands)
    return f"towers: [{names}] leaves the others out" if names else None


def _check_called_again(entry: Entry, spot: Spot) -> None:
    """A linear that its unit calls several times is changed at every call: as a whole, and by the same number."""
    gate = entry.method.gate
    if not isinstance(spot.site, Projection) or not spot.site.again:
        return
    called = f"{spot.unit.name} calls {spot.site.module} {len(spot.site.again) + 1} times"
    if spot.site.rows is not None:
        entry.refuse_once(f"{called}, and {spot.site.name} is a part of it", *spot.word, hint="name another site")
    if gate is not None and gate.reads:
        entry.refuse_once(f"{called}: a {gate.kind} gate reads the x of one", "gate", hint="use a constant gate")


def _check_gate(entry: Entry, spots: Sequence[Spot]) -> None:
    """One complaint for a method that no gate can scale, or for the first site that cannot be gated so."""
    gate = entry.method.gate
    if entry.selective and gate:
        message = f"{entry.method.method} trains the base's own parameters: it adds nothing that a gate could scale"
        entry.refuse(message, "gate", hint="leave its gate out")
    reasons = (entry.additive.gate_refusal(gate, spot.site) for spot in spots if gate)
    reason = next((reason for reason in reasons if reason is not None), None)
    if reason is not None:
        message, hint = said(reason)
        entry.refuse(message, "gate", "kind", hint=hint and hint + _of_preset(entry))


def _of_preset(entry: Entry) -> str:
    """Where a gate that a preset has is changed; nothing where the entry is written out."""
    preset = entry.place("gate", "kind") == entry.place("method") is not None
    return f", under the preset as {entry.method.method}: {{gate: ...}}" if preset else ""


def said(reason: str) -> tuple[str, str | None]:
    """A method's refusal as message and hint: what is wrong, and after the last colon what to do."""
    message, colon, hint = reason.rpartition(": ")
    return (message, hint) if colon else (reason, None)


def _check_layer_gate(entry: Entry, spots: Sequence[Spot]) -> None:
    gate = entry.method.gate
    if gate is None or gate.scope != "layer" or gate.kind == "central":
        return
    for members in _by_gate([(entry, spot) for spot in spots]):
        if fault := _differing(members, reads=bool(gate.reads)):
            (_, one), (_, other), why = fault
            message = f"one gate per layer cannot serve {one.site.name!r} and {other.site.name!r}: {why}"
            entry.refuse_once(message, "gate", hint=f"gate: {{kind: {gate.kind}, scope: site}}")


def _by_gate(members: Sequence[Member]) -> list[list[Member]]:
    """The members that each gate of a layer serves: all of them, or those of one of its attentions."""
    return [own for layer in _grouped(members, _layer_key) for own in _each_attention(layer)]


def _each_attention(members: list[Member]) -> list[list[Member]]:
    """A layer's members, or those of each unit where it has several attentions: each has a gate of its own."""
    named = {(entry.index, spot.site.name) for entry, spot in members}
    return [members] if len(named) == len(members) else _grouped(members, lambda spot: spot.path)


def _grouped(members: Sequence[Member], key: Callable[[Spot], Any]) -> list[list[Member]]:
    ordered = sorted(members, key=lambda member: key(member[1]))
    return [list(group) for _, group in groupby(ordered, key=lambda member: key(member[1]))]


def _check_central(entries: Sequence[Taken]) -> None:
    shared: dict[str, list[Member]] = {}
    for entry, spots in entries:
        gate = entry.method.gate
        if gate and gate.kind == "central" and gate.shared and not entry.selective:
            shared.setdefault(gate.shared, []).extend((entry, spot) for spot in spots)
    for name, members in shared.items():
        layers = _by_gate(members)
        for layer in layers:
            _check_alone(name, layer)
        _check_inputs(name, layers)


def _check_alone(name: str, members: Sequence[Member]) -> None:
    """One softmax, in one layer: at least two entries."""
    first = members[0][0]
    entries = {entry.index for entry, _ in members}
    where = f"layer {members[0][1].layer.index}" if members[0][1].layer else members[0][1].path
    if len(entries) < 2:
        message = f"the central gate {name!r} has one member only: a softmax over one entry is always 1"
        first.refuse_once(message, "gate", hint=f"another entry on {where} must name shared: {name} too")


def _check_inputs(name: str, layers: Sequence[Sequence[Member]]) -> None:
    """One softmax, in one layer: in one unit, reading one tensor.  The first layer's fault speaks for all."""
    for members in layers:
        if fault := _differing(members, reads=True):
            first, other, why = fault
            layer = other[1].layer
            where = f"layer {layer.index} of the {layer.tower}" if layer else other[1].path
            both = f"{_member(*first)} and {_member(*other)} in {where}"
            hint = "it joins what reads one tensor: lora on q and v, and a prefix; or parallel adapters"
            members[-1][0].refuse(f"the central gate {name!r} cannot serve {both}: {why}", "gate", hint=hint)
            return


def _differing(members: Sequence[Member], *, reads: bool) -> tuple[Member, Member, str] | None:
    """Two members that one gate cannot serve, and why; None where it can serve all.  `reads`: the gate has an input."""
    first, *others = members
    faults = ((first, other, why) for other in others if (why := _difference(first, other, reads)))
    return next(faults, None)


def _member(entry: Entry, spot: Spot) -> str:
    """`the lora on 'q' (line 4)`: what a complaint calls a member of a gate."""
    place = entry.place()
    line = f" (line {place.line})" if place else ""
    return f"the {entry.method.method} on {spot.site.name!r}{line}"


def _difference(first: Member, other: Member, reads: bool) -> str | None:
    """Why one gate cannot serve two members."""
    (_, one), (_, two) = first, other
    if two.path != one.path:
        return f"they are in different units, {one.unit.base.__name__} and {two.unit.base.__name__}"
    if not reads or _reads(*first) == _reads(*other):
        return None
    alone = next((member for member in (first, other) if isinstance(_reads(*member), Spot)), None)
    if alone is None:
        return "they read different inputs"
    return f"{alone[0].method.method} on {alone[1].site.name!r} reads an x that is made for it alone"


def _reads(entry: Entry, spot: Spot) -> str | Spot:
    """The node whose value a gate reads here; the spot itself stands for an x that nothing else reads."""
    site = spot.site
    if isinstance(site, Sublayer):
        return entry.additive.reads(site) or spot
    if isinstance(site, Attention):
        return site.input
    if not isinstance(site, Projection):
        return spot
    call = next(node for node in spot.unit.graph.nodes if node.name == site.node)
    return str(call.all_input_nodes[0].name)


def _check_twice(entries: Sequence[Taken]) -> None:
    """The same method on one site by two entries, unless one says that it is meant."""
    taken: dict[tuple[str, str, str], Entry] = {}
    for entry, spots in entries:
        for spot in spots:
            before = taken.setdefault((entry.method.method, spot.path, spot.site.name), entry)
            if before is not entry and not (entry.method.again or before.method.again):
                place = before.place()
                where = f" (line {place.line})" if place else ""
                message = f"{entry.method.method} stands on {spot.site.name!r} already, by an entry before{where}"
                hint = "give them different layers, or say again: true where it is meant"
                entry.refuse_once(message, *spot.word, hint=hint)


def _layer_key(spot: Spot) -> tuple[str, int, str]:
    return (spot.layer.tower, spot.layer.index, "") if spot.layer else ("", 0, spot.path)
