"""A whole model as layers of units: equal modules share one trace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import fx, nn

from peftc.graph.sites import Attention, Layer, Site, Unit, within
from peftc.trace.record.attention_choice import implementation
from peftc.trace.record.causal import LooksBack
from peftc.trace.record.observed import Call, Observed
from peftc.trace.record.other_sizes import Elsewhere
from peftc.trace.record.taken import taken
from peftc.trace.roles.apart import Apart
from peftc.trace.roles.attention import attention_sites
from peftc.trace.roles.blocks import block_sites, feed_sites, other_sites, with_output
from peftc.trace.roles.mixing import caches
from peftc.trace.roles.products import weighs_no_keys
from peftc.trace.roles.returned_weights import computed_with, needs_weights
from peftc.trace.roles.towers import beside, layer_paths
from peftc.trace.roles.views import View
from peftc.trace.tracer.fingerprint import fingerprint
from peftc.trace.tracer.patches import Session
from peftc.trace.tracer.units import UnitTracer
from peftc.trace.tracer.values import TraceFailure


def layers(
    model: nn.Module, observed: Observed, session: Session, looks_back: LooksBack
) -> tuple[tuple[Layer, ...], Mapping[str, str]]:
    """Every layer of every tower, its units traced once per distinct forward; what stays as it is, and why."""
    towers = layer_paths(model, observed)
    blocks = [path for tower in towers for path in tower]
    attending = observed.attending(model)
    weighed, recorded = ([p for p in taken(model, w) if _inside(p, blocks)] for w in ("attentions", "hidden_states"))
    attention = list(dict.fromkeys(_asked(path, weighed) for path in attending if path not in blocks))
    leaves = frozenset(model.get_submodule(p) for p in (*attention, *recorded))
    replaced = {path: why for path, why in observed.replaced.items() if path in (*attention, *blocks)}
    further = Elsewhere(model, observed)
    units = _Units(model, observed, leaves, session, looks_back, replaced, attention, attending, further)
    inner = {path: unit for unit in units.of(attention, {}) for path in unit.paths}
    units = replace(units, attending=[p for p in attending if p not in inner or not units.only_mixes(p, inner[p])])
    between = {path: u for u in units.of([p for p in recorded if p not in inner], inner) for path in u.paths}
    outer = {path: unit for unit in units.of(blocks, inner | between) for path in unit.paths}
    inner = computed_with(inner, dict.fromkeys((*between.values(), *outer.values())))
    feeds = units.feeding({path: outer[path] for path in units.attending if path in outer})
    found, apart = [], Apart(model, observed)
    for paths, tower in zip(towers, tower_names(towers, outer), strict=True):
        for index, path in enumerate(paths):
            inside, recorded_in = (_below(known, path) for known in (inner, between))
            whole = [(path, outer[path])] if path in outer else []
            own = tuple(p for pair in (*inside, *whole, *recorded_in) for p in apart.of(*pair)) + feeds.get(path, ())
            found.append(Layer(tower, index, path, own, units.attends(path) or any(map(_has_attention, own))))
    return tuple(found), units.untraced


def _below(units: Mapping[str, Unit], path: str) -> list[tuple[str, Unit]]:
    return [(inner, unit) for inner, unit in units.items() if inner.startswith(f"{path}.")]


def _inside(path: str, blocks: Sequence[str]) -> bool:
    return any(path != block and within(path, block) for block in blocks)


def _asked(path: str, weighed: Sequence[str]) -> str:
    """What attends as transformers sees it: the outermost module around it whose calls are asked for its weights."""
    return min((other for other in weighed if within(path, other)), key=len, default=path)


def tower_names(towers: Sequence[Sequence[str]], units: Mapping[str, Unit]) -> list[str]:
    """encoder or decoder for a single tower, by its causality; the parts of the paths that differ for several."""
    if len(towers) == 1:
        causal = any(site.causal for path in towers[0] if path in units for site in units[path].sites)
        return ["decoder" if causal else "encoder"]
    return _differing([paths[0].split(".") for paths in towers])


def _differing(split: Sequence[Sequence[str]]) -> list[str]:
    """The first parts in which paths differ, and the next where several have the same."""
    if len(split) < 2:
        return [""] * len(split)
    position = next(i for i, parts in enumerate(zip(*split, strict=False)) if len(set(parts)) > 1)
    first = [parts[position].removesuffix("_model").removesuffix("_tower") for parts in split]
    rests = {name: [parts for parts, own in zip(split, first, strict=True) if own == name] for name in first}
    further = {name: iter(_differing(same)) for name, same in rests.items()}
    return ["_".join(filter(None, (name, next(further[name])))) for name in first]


@dataclass(frozen=True, eq=False)
class _Units:
    model: nn.Module
    observed: Observed
    leaves: frozenset[nn.Module]
    session: Session
    looks_back: LooksBack
    untraced: dict[str, str]
    attention: Sequence[str]
    attending: Sequence[str]
    elsewhere: Elsewhere

    def of(self, paths: Sequence[str], inner: Mapping[str, Unit]) -> list[Unit]:
        """The units of these modules: one per distinct forward."""
        groups: dict[tuple[nn.Module, tuple[Any, ...]], list[str]] = {}
        for path in (p for p in paths if p not in self.untraced):
            module = self.model.get_submodule(path)
            within = tuple(sorted((p[len(path) :], id(u)) for p, u in _below(inner, path)))
            groups.setdefault((self.observed.twins.get(module, module), within), []).append(path)
        found: list[Unit] = []
        for members in groups.values():
            try:
                first, last = (fingerprint(self._tracer(p).sketch()) for p in (members[0], members[-1]))
                alike = [members] if first == last else [[p] for p in members]
                found += [self._unit(same, self._tracer(same[0]).graph(), inner) for same in alike]
            except TraceFailure as failure:
                name = type(self.model.get_submodule(members[0])).__name__
                self.untraced.update(dict.fromkeys(members, f"{name}: {failure}"))
        return _joined(found)

    def feeding(self, attending: Mapping[str, Unit]) -> Mapping[str, tuple[tuple[str, Unit], ...]]:
        """Feed-forwards that are modules of their own, beside blocks that are but an attention: path -> units."""
        paths = {path: [p for p in beside(self.model, path) if not self.attends(p)] for path in attending}
        causal = any(site.causal for unit in attending.values() for site in unit.sites)
        found: dict[str, Unit] = {}
        for unit in replace(self, untraced={}).of([p for same in paths.values() for p in same], {}):
            module = self.model.get_submodule(unit.paths[0])
            view = View.of(module, unit.graph, partial(self.looks_back, unit.paths[0]))
            if sites := feed_sites(view, causal):
                found.update(dict.fromkeys(unit.paths, replace(unit, sites=tuple(sites))))
        return {path: tuple((p, found[p]) for p in same if p in found) for path, same in paths.items()}

    def _tracer(self, path: str) -> UnitTracer:
        module = self.model.get_submodule(path)
        calls, further = self.observed.calls(module), self.elsewhere.calls
        return UnitTracer(module, self.leaves - {module}, calls, self.session, further)

    def _unit(self, paths: Sequence[str], graph: fx.Graph, inner: Mapping[str, Unit]) -> Unit:
        module = self.model.get_submodule(paths[0])
        if changed := [name for n in graph.nodes if paths[0] in self.attention for name in n.meta.get("arguments", ())]:
            raise TraceFailure(f"it changes {changed[0]} in place, which what calls it may read again")
        if implementation(module) != "eager" and needs_weights(graph):
            raise TraceFailure("it computes with the weights of its attention, which eager attention alone returns")
        view = View.of(module, graph, partial(self.looks_back, paths[0]), alike(self.observed.calls(module)))
        sites = self._sites(paths[0], view, inner)
        return Unit(
            type(module).__name__, type(module), graph, tuple(sites), tuple(paths), fingerprint=fingerprint(graph)
        )

    def _sites(self, path: str, view: View, inner: Mapping[str, Unit]) -> list[Site]:
        """The sites of an attention, of a block that attends, of one between such blocks, or of any block without."""
        if path in self.attention:
            return with_output(view, attention_sites(view))
        if self.attending and not self.attends(path):
            return other_sites(view, caches(self.observed.calls(view.module)))
        own = attention_sites(view)
        within = {p[len(path) + 1 :]: u for p, u in _below(inner, path)}
        units = {p: View.of(view.module.get_submodule(p), u.graph, view.causal) for p, u in within.items()}
        return [*own, *block_sites(view, {p: (unit, list(within[p].sites)) for p, unit in units.items()}, own)]

    def attends(self, path: str) -> bool:
        """Whether a module attends, or something in it does."""
        return any(within(other, path) for other in self.attending)

    def only_mixes(self, path: str, unit: Unit) -> bool:
        """Whether what was seen to weigh something weighs no keys, but streams of one position, or experts."""
        if _has_attention((path, unit)):
            return False
        return weighs_no_keys(View.of(self.model.get_submodule(path), unit.graph, lambda: False))


def _has_attention(instance: tuple[str, Unit]) -> bool:
    return any(isinstance(site, Attention) for site in instance[1].sites)


def alike(calls: Sequence[Call]) -> dict[str, str]:
    """Parameters that every call gives the sequence that it gives another one, and the first of these.

    It is the very tensor, or one in the same sizes: no two sequences are as long as each other in all examples.
    """
    given = [recorded.named for call in calls for recorded in call]
    names = [n for n in (given[0] if given else ()) if all(isinstance(g.get(n), torch.Tensor) for g in given)]
    first = {n: next(o for o in names if all(_one_sequence(g[n], g[o]) for g in given)) for n in names}
    return {name: other for name, other in first.items() if name != other}


def _one_sequence(one: torch.Tensor, other: torch.Tensor) -> bool:
    states = one.dim() == 3 and one.is_floating_point() and other.is_floating_point()
    return one is other or (states and one.shape == other.shape)


def _joined(units: Sequence[Unit]) -> list[Unit]:
    """Units that do the same at the same sites as one, their paths together."""
    groups: dict[Any, list[Unit]] = {}
    for unit in units:
        groups.setdefault((unit.base, unit.fingerprint, unit.sites), []).append(unit)
    return [replace(same[0], paths=tuple(p for u in same for p in u.paths)) for same in groups.values()]
