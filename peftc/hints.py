"""What a selector that is wrong could say instead, where it would be right."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from fnmatch import fnmatchcase

from peftc.graph.sites import Embedding, Layer, Projection, Trace, dotted, within
from peftc.methods.base import Method
from peftc.methods.selective import Selective


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


def nearest_module(glob: str, trace: Trace) -> str | None:
    """The module that was probably meant, by the last part of its name; that of a parameter which was named."""
    named = next((name for name in trace.parameters if fnmatchcase(name, glob)), None)
    if named is not None:
        return f"{named} is a parameter: name its module, {named.rpartition('.')[0]!r}"
    lasts = {name.rsplit(".", 1)[-1]: name for name in reversed(trace.modules) if name}
    likely = get_close_matches(glob.strip("*.").rsplit(".", 1)[-1], lasts, n=1)
    return f"did you mean {lasts[likely[0]]!r}?" if likely else None


def _modules(method: Method, trace: Trace) -> Iterator[str]:
    """The modules that a method may change, or parameters of which it may train."""
    if isinstance(method, Selective):
        yield from (name.rpartition(".")[0] for name in method.trains(trace.parameters))
        return
    for path, unit in trace.instances():
        for site in unit.sites:
            if isinstance(site, Projection | Embedding) and method.refusal(site) is None:
                yield dotted(path, site.module)
