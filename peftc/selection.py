"""Which parameters of the base train: what selective entries choose, and what `train:` names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from peftc.errors import Place, Problem
from peftc.graph.sites import Layer, Parameter, Projection, Trace, around, within
from peftc.hints import nearest_module
from peftc.legality import check_refusal
from peftc.methods.selective import Selective
from peftc.selectors import Entry, Spot
from peftc.spec.schema import Spec


def chosen(entry: Entry) -> tuple[str, ...]:
    """The parameters that a selective entry trains; complaints go to the entry."""
    candidates, method = _candidates(entry), entry.method
    if entry.problems:
        return ()
    assert isinstance(method, Selective)
    names = method.trains(candidates)
    if not names:
        where = "there" if entry.restricted or method.at or method.modules else "in this base"
        elsewhere = next(iter(method.trains(entry.trace.parameters)), None)
        hint = f"elsewhere it would, as {elsewhere}" if elsewhere else f"leave it out: {method.method} {method.summary}"
        entry.refuse(f"{method.method} finds nothing to train {where}", "method", hint=hint)
    return names


def _candidates(entry: Entry) -> dict[str, Parameter]:
    """What a selective entry may choose from: the base without its head, or what its selectors leave of that."""
    everything, method = entry.trace.parameters, entry.method
    layers = entry.layers()
    if method.at is not None or method.modules is not None:
        spots = entry.named(layers)
        for spot in spots:
            check_refusal(entry, spot)
        globs = enumerate(method.modules or ())
        below = [name for position, glob in globs for name in entry.matches(glob, position, layers)]
        return {} if entry.problems else _below([*(_whole(entry, spot) for spot in spots), *below], everything)
    if method.towers is not None and method.layers == "all":
        _pass_by(entry, layers)
    paths = [path for layer in layers for path in layer.paths] if entry.restricted else [""]
    return {name: p for name, p in _below(paths, everything).items() if not p.head}


def _pass_by(entry: Entry, layers: Iterable[Layer]) -> None:
    """Note what the entry would train beside the blocks of the towers that it names, and leaves out."""
    beside = _below((layer.path.rpartition(".")[0].rpartition(".")[0] for layer in layers), entry.trace.parameters)
    apart = {name: p for name, p in beside.items() if not p.head and not around(entry.trace.layers, name)}
    assert isinstance(entry.method, Selective)
    for name in entry.method.trains(apart):
        entry.passed_by.setdefault("in no layer", {})[name.rpartition(".")[0]] = None


def _below(paths: Iterable[str], parameters: Mapping[str, Parameter]) -> dict[str, Parameter]:
    """The parameters of these modules, a tied one by any of its names."""
    modules = tuple(dict.fromkeys(paths))
    return {
        name: parameter
        for name, parameter in parameters.items()
        if any(within(alias, path) for alias in (name, *parameter.names) for path in modules)
    }


def _whole(entry: Entry, spot: Spot) -> str:
    """The module of a site, whose parameters can be chosen only all together."""
    name, method = spot.site.name, entry.method.method
    if spot.module is None:
        entry.refuse_once(f"{name!r} is not one module, so {method} cannot choose its parameters", *spot.word)
        return spot.path
    parts = _parts(spot)
    if not set(parts) <= set(entry.method.at or ()):
        message = f"{name!r} is a part of one fused module, whose parameters train together or not at all"
        entry.refuse_once(message, *spot.word, hint=f"name all of {', '.join(parts)}")
    return spot.module


def _parts(spot: Spot) -> list[str]:
    """The sites that one module is: several where it is fused."""
    if not isinstance(spot.site, Projection):
        return [spot.site.name]
    return [s.name for s in spot.unit.sites if isinstance(s, Projection) and s.module == spot.site.module]


def trained_parts(spec: Spec, trace: Trace) -> tuple[tuple[str, ...], list[Problem]]:
    """The parameters that `train:` names, and what is wrong with it."""
    names: dict[str, None] = {}
    problems = []
    for position, word in enumerate(spec.train):
        found = _part(word, trace)
        names |= dict.fromkeys(found)
        if not found:
            problems.append(Problem(*_nothing(word, trace, spec, position)))
    return tuple(name for name in trace.parameters if name in names), problems


def _part(word: str, trace: Trace) -> list[str]:
    if word == "head":
        return [name for name, parameter in trace.parameters.items() if parameter.head]
    modules = [name for name in trace.modules if name and fnmatchcase(name, word)]
    return list(_below(modules, trace.parameters)) if modules else []


def _tied_head(trace: Trace) -> str | None:
    """What to write where the head's weight is one of the base's."""
    tied = ((name, other) for name, p in trace.parameters.items() for other in p.names)
    apart = ((name, other) for name, other in tied if name.partition(".")[0] != other.partition(".")[0])
    found = next(apart, None)
    if found is None:
        return None
    name, other = (path.rpartition(".")[0] for path in found)
    return f"{other} is tied to {name}: name that to train both"


def _nothing(word: str, trace: Trace, spec: Spec, position: int) -> tuple[str, Place | None, str | None]:
    """Why a word of `train:` names no parameter."""
    place = spec.origin.place("train", position)
    if word == "head":
        hint = _tied_head(trace) or "a task under base: gives it one, as in task: sequence-classification"
        return f"{type(trace.model).__name__} has no head", place, hint
    if any(fnmatchcase(name, word) for name in trace.modules if name):
        return f"{word!r} has no parameters", place, None
    return f"no module is called {word!r}", place, nearest_module(word, trace)
