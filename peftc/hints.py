"""What a selector that is wrong could say instead, where it would be right."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import nn

from peftc.graph.sites import Attention, Embedding, Layer, Parameter, Projection, Trace, dotted, within
from peftc.methods.base import Method
from peftc.methods.selective import Selective
from peftc.spec.layers import Layers, LayersError, ranges, select
from peftc.trace.roles.normalising import is_norm

PROJECTIONS = ("q", "k", "v", "o")
SHOWN = 4


def place_in(layer: Layer, method: Method, trace: Trace) -> str:
    """Where in a layer a method may stand: its sites, or else a glob over its modules."""
    found = ((name, layer.find(name)) for name in layer.site_names())
    if names := [name for name, place in found if place and method.refusal(place[2]) is None]:
        return f"name {', '.join(names)}"
    path = next((path for path in _modules(method, trace) if within(path, layer.path)), None)
    return f"{method.method} has no place in it" if path is None else f'write modules: "*.{path.rpartition(".")[2]}"'


def glob_of(name: str, method: Method, trace: Trace) -> str | None:
    """A glob for the modules of a name, or for what lies in them, among which the method may stand."""
    places = list(_modules(method, trace))
    globs = (f"*.{name}", name, f"*.{name}.*", f"{name}.*")
    return next((glob for glob in globs if any(fnmatchcase(place, glob) for place in places)), None)


def instead(name: str, layer: Layer, method: Method, trace: Trace) -> Iterator[str]:
    """What stands in a layer in place of a projection that is no site of it: other linear maps, or parameters alone."""
    attention = layer.find("attention")
    if name in PROJECTIONS and attention and isinstance(attention[2], Attention):
        yield from (f"attention {why}" for why in (attention[2].written,) if isinstance(why, str))
    if name.rpartition(".")[2] not in PROJECTIONS:
        return
    sites = {dotted(p, s.module) for p, u in layer.units for s in u.sites if isinstance(s, Projection | Embedding)}
    places = (path for path in _modules(method, trace) if path not in sites and not _is_table(path, trace))
    if globs := _shown(f'"*.{own}"' for own in _below(places, layer)):
        yield f"its other linear maps go by modules: {globs}"
    if bare := _shown(
        _below((n for n, p in trace.parameters.items() if n not in sites and _is_bare(n, p, trace)), layer)
    ):
        yield f"parameters used without a module of their own, where nothing can stand: {bare}"


def telling(layers: Iterable[Layer], trace: Trace) -> Layer:
    """The layer that says most of why a site is missing: by what has no trace in it, else by the sites that it has."""
    return max(layers, key=lambda layer: (len(untraced(layer, trace)), len(layer.site_names())))


def numbered(layers: Sequence[Layer]) -> str:
    """`layer 3 of the encoder`, `layers 0-2, 5 of the decoder`, or some of each."""
    towers = dict.fromkeys(layer.tower for layer in layers)
    each = {tower: [layer.index for layer in layers if layer.tower == tower] for tower in towers}
    return " and ".join(
        f"layer{'s' if len(own) > 1 else ''} {ranges(own)} of the {tower}" for tower, own in each.items()
    )


def towers_of(layers: Layers, trace: Trace) -> str | None:
    """What to write where some towers alone have the layers that a selector means."""
    able = []
    for tower in trace.towers():
        with suppress(LayersError):
            if select(layers, sum(layer.tower == tower for layer in trace.layers)):
                able.append(tower)
    return f"towers: [{', '.join(able)}] leaves the others out" if able else None


def untraced(layer: Layer, trace: Trace) -> list[str]:
    """What in a layer has no trace, and why."""
    found = dict.fromkeys(why for path, why in trace.untraced.items() if within(path, layer.path))
    return [f"not traced: {why}" for why in found]


def _below(paths: Iterable[str], layer: Layer) -> Iterator[str]:
    """The names inside a layer of what lies there."""
    return (path.removeprefix(f"{layer.path}.") for path in paths if path != layer.path and within(path, layer.path))


def _shown(names: Iterable[str]) -> str:
    """A few of some names."""
    found = list(dict.fromkeys(names))
    return ", ".join([*found[:SHOWN], *(["…"] if found[SHOWN:] else [])])


def _is_table(path: str, trace: Trace) -> bool:
    return isinstance(trace.model.get_submodule(path), nn.Embedding)


def _is_bare(name: str, parameter: Parameter, trace: Trace) -> bool:
    """Whether a matrix is no weight of a module that does nothing but apply it."""
    owner, _, leaf = name.rpartition(".")
    module = trace.model.get_submodule(owner)
    plain = leaf == "weight" and not any(True for _ in module.children())
    return len(parameter.shape) > 1 and not plain and not is_norm(module)


def nearest_module(glob: str, trace: Trace) -> str | None:
    """The modules that were probably meant, by the last part of their name; those of parameters which were named."""
    named = next((name for name in trace.parameters if fnmatchcase(name, glob)), None)
    if named is not None:
        module, outer = named.rpartition(".")[0], glob.rpartition(".")[0]
        if not module:
            return f"{named} is a parameter of the model itself, and of no module that could be named"
        meant = outer if outer.strip("*.") and fnmatchcase(module, outer) else module
        return f"{named} is a parameter: name its module, {meant!r}"
    lasts = {name.rsplit(".", 1)[-1]: name for name in reversed(trace.modules) if name}
    likely = get_close_matches(glob.strip("*.").rsplit(".", 1)[-1], lasts, n=1)
    if not likely:
        return None
    several = sum(name.endswith(f".{likely[0]}") for name in trace.modules) > 1
    return f"did you mean {f'*.{likely[0]}' if several else lasts[likely[0]]!r}?"


def no_place(module: str, trace: Trace) -> str:
    """Why a module is no site."""
    if module in trace.fixed:
        return trace.fixed[module]
    weight = getattr(trace.model.get_submodule(module), "weight", None)
    if not isinstance(weight, nn.Parameter | None):
        return "its weight is computed, and no parameter"
    if weight is None or weight.dim() != 2:
        return "it is no linear map and no embedding"
    if any(within(module, path) for path, _ in trace.instances()):
        return "it is no linear map and no embedding of the unit around it"
    return "it lies outside every forward that can be rewritten"


def _modules(method: Method, trace: Trace) -> Iterator[str]:
    """The modules that a method may change, or parameters of which it may train."""
    if isinstance(method, Selective):
        yield from (name.rpartition(".")[0] for name in method.trains(trace.parameters))
        return
    for path, unit in trace.instances():
        for site in unit.sites:
            if isinstance(site, Projection | Embedding) and method.refusal(site) is None:
                yield dotted(path, site.module)
