"""Which sites of a base an entry means: its towers, layers, `at` and `modules` expanded over a trace."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from peftc.errors import Place, Problem
from peftc.graph.sites import Attention, Embedding, Layer, Projection, Site, Trace, Unit, around, dotted, within
from peftc.hints import glob_of, instead, nearest_module, no_place, numbered, telling, towers_of, untraced
from peftc.methods.additive import Additive
from peftc.methods.base import Method
from peftc.methods.selective import Selective
from peftc.spec.complaints import closest
from peftc.spec.document import Step
from peftc.spec.layers import LayersError, select
from peftc.spec.patterns import compress
from peftc.spec.schema import Spec
from peftc.trace.roles.normalising import is_norm

EMBEDDING = "embedding"


@dataclass(frozen=True, eq=False)
class Spot:
    """A site in the model: its layer (None outside every layer), its unit's path, and the word that chose it."""

    layer: Layer | None
    path: str
    unit: Unit
    site: Site
    word: tuple[Step, ...]

    @property
    def module(self) -> str | None:
        """The path of the module that is called here, or None where the site is no single module."""
        if not isinstance(self.site, Projection | Embedding):
            return None
        return dotted(self.path, self.site.module)


class Entry:
    """One entry over a trace.  As its selectors are expanded these grow: `problems`, layers that are `absent`, and
    modules that are `passed_by`, each by what is said of them.
    """

    def __init__(self, spec: Spec, index: int, trace: Trace) -> None:
        self.index = index
        self.method: Method = spec.methods[index]
        self.trace = trace
        self.origin = spec.origin
        self.problems: list[Problem] = []
        self.absent: dict[str, list[str]] = {}
        self.passed_by: dict[str, dict[str, None]] = {}

    def place(self, *path: Step) -> Place | None:
        """The place of one of the entry's settings; of the method's name where it was left out."""
        entry = self.origin.place("methods", self.index)
        found = self.origin.place("methods", self.index, *path)
        return found if found != entry else self.origin.place("methods", self.index, "method")

    def refuse(self, message: str, *path: Step, hint: str | None = None) -> None:
        self.problems.append(Problem(message, self.place(*path), hint))

    def refuse_once(self, message: str, *path: Step, hint: str | None = None) -> None:
        """The same complaint about many layers is one complaint."""
        if all(problem.message != message for problem in self.problems):
            self.refuse(message, *path, hint=hint)

    @property
    def selective(self) -> bool:
        """Whether it trains parameters of the base and adds nothing: it has no sites of its own."""
        return isinstance(self.method, Selective)

    @property
    def additive(self) -> Additive:
        """The method of an entry that has sites of its own."""
        assert isinstance(self.method, Additive)
        return self.method

    def layers(self) -> tuple[Layer, ...]:
        """The layers that it names, tower by tower."""
        return tuple(layer for tower in self._towers() for layer in self._layers_of(tower))

    def _towers(self) -> tuple[str, ...]:
        known = self.trace.towers()
        if self.method.towers is None:
            return known
        for position, name in enumerate(self.method.towers):
            if name not in known:
                own = closest(name, known, "its towers are") if known else "it has none"
                without = (m for m in self.trace.modules if m.rpartition(".")[2] == name)
                hint = "; ".join([str(own), *(f"in {path} no attention was found" for path in without)])
                self.refuse(f"{type(self.trace.model).__name__} has no tower {name!r}", "towers", position, hint=hint)
        return tuple(tower for tower in known if tower in self.method.towers)

    def _layers_of(self, tower: str) -> tuple[Layer, ...]:
        layers = {layer.index: layer for layer in self.trace.layers if layer.tower == tower}
        hint = towers_of(self.method.layers, self.trace) if self.method.towers is None else None
        try:
            chosen = select(self.method.layers, len(layers))
        except LayersError as error:
            self.refuse(f"{tower}: {error}", "layers", *_last_of(self.method.layers), hint=hint)
            return ()
        if not chosen:
            message = f"layers {self.method.layers} is no layer of the {tower}, which has {len(layers)}"
            self.refuse(message, "layers", hint=hint)
        return tuple(layers[index] for index in chosen)

    def spots(self) -> tuple[Spot, ...]:
        """Every site that it takes, each once."""
        layers, globs = self.layers(), enumerate(self.method.modules or ())
        globbed = (spot for position, glob in globs for spot in self._globbed(glob, position, layers))
        found = [*self.named(layers), *globbed]
        return tuple({(spot.path, spot.site.name): spot for spot in reversed(found)}.values())[::-1]

    def named(self, layers: Sequence[Layer]) -> list[Spot]:
        """The sites of `at`; its method's own where it names neither these nor modules."""
        names = self.method.at
        if names is None and self.method.modules is None:
            names = self.method.default_sites()
        if not self.trace.layers and any(name != EMBEDDING for name in names or ()):
            reasons = dict.fromkeys(f"{path}: {why}" for path, why in self.trace.untraced.items())
            hint = "; ".join(["name modules: for its linear maps and embeddings", *list(reasons)[:3]])
            message = f"{type(self.trace.model).__name__} has no layers that data flow could find"
            self.refuse(message, "method", hint=hint)
        return [spot for position, name in enumerate(names or ()) for spot in self._named(name, position, layers)]

    def _named(self, name: str, position: int, layers: Sequence[Layer]) -> list[Spot]:
        """The sites of one name; a tower without it is left out only where another has it and none was asked for."""
        word: tuple[Step, ...] = ("at", position)
        if name in (self.method.at or ())[:position]:
            self.refuse(f"{name!r} stands here twice", *word)
            return []
        if name == EMBEDDING and (outside := _embedding(self.trace, word)):
            return self._outside(outside, word)
        found = [Spot(layer, *place, word) for layer in layers for place in _places(layer, name)]
        having = {spot.layer.tower for spot in found if spot.layer}
        lacking = [layer for layer in layers if not layer.find(name)]
        if self.method.towers is None and found:
            self._note([o for o in lacking if o.tower not in having and not name.startswith("cross.")], name)
            lacking = [layer for layer in lacking if layer.tower in having]
        if self.method.layers == "all" and found:
            without = self._left_out(name, lacking, having)
            lacking = [layer for layer in lacking if layer not in without]
        if lacking:
            self._no_site(name, word, lacking, found)
        elif name == EMBEDDING and not self.trace.layers:
            self.refuse(f"{type(self.trace.model).__name__} has no site {name!r}", *word)
        return found

    def _left_out(self, name: str, lacking: Sequence[Layer], having: Collection[str]) -> list[Layer]:
        """The layers without any attention, or feed-forward, where others of the tower have one; they are noted."""
        without = [layer for layer in lacking if layer.tower in having and _lacks_part(layer, name, self.trace)]
        self._note(without, name)
        return without

    def _note(self, without: Sequence[Layer], name: str) -> None:
        """That layers of a tower, or all of them, lack a site; and what of them was not traced."""
        for tower in dict.fromkeys(layer.tower for layer in without):
            own = [layer for layer in without if layer.tower == tower]
            reasons = dict.fromkeys(why for layer in own for why in untraced(layer, self.trace))
            self.absent.setdefault("; ".join([numbered(own), *reasons]), []).append(name)

    def notes(self) -> Iterator[str]:
        """Which layers it leaves out, though it names all, and which modules that its globs name."""
        for where, names in self.absent.items():
            yield f"{self.method.method}: no {', '.join(names)} in {where}"
        for why, modules in self.passed_by.items():
            yield f"{self.method.method}: leaves out {', '.join(compress(modules))}: {why}"

    def _outside(self, found: list[Spot], word: tuple[Step, ...]) -> list[Spot]:
        """The input embedding, which an entry that names layers or towers cannot mean."""
        if not self.restricted:
            return found
        kind, setting = ("layer", "layers") if self.method.layers != "all" else ("tower", "towers")
        hint = f"give it an entry of its own, without {setting}"
        self.refuse(f"the embedding lies outside every {kind}, and this entry names {setting}", *word, hint=hint)
        return []

    def _no_site(self, name: str, word: tuple[Step, ...], lacking: Sequence[Layer], found: Sequence[Spot]) -> None:
        first = lacking[0] if found else telling(lacking, self.trace)
        having = [other for other in self.trace.layers if other.find(name)]
        one = f"layer {first.index} of the {first.tower}, {_article(_block(first))}"
        which = one if found or having else _block(first)
        outside = () if self.restricted or not _embedding(self.trace, word) else (EMBEDDING,)
        names = (*first.site_names(), *outside)
        hints = [f"its sites are {', '.join(names)}" if names else "it has none that data flow could find"]
        if having:
            hints.append(f"{name!r} is in {numbered(having)}")
        if glob := glob_of(name, self.method, self.trace):
            hints.insert(0, f'for modules of this name write modules: "{glob}"')
        if name.startswith("cross.") and not any("cross.attention" in o.site_names() for o in self.trace.layers):
            hints.append("no attention here reads another sequence")
        hints += [*instead(name, first, self.method, self.trace), *untraced(first, self.trace)]
        lacks = f"{which}{',' * (which is one)} has no site {name!r}"
        if not (first.attends or _is_of_feed(name) or name == EMBEDDING):
            lacks = f"no attention was found in {which}: it has no site {name!r}"
        self.refuse(lacks, *word, hint="; ".join(hints))

    def _globbed(self, glob: str, position: int, layers: Sequence[Layer]) -> list[Spot]:
        """The sites that a glob names: it may name what is no site too, but not that alone; maps among it are noted."""
        word: tuple[Step, ...] = ("modules", position)
        names = self.matches(glob, position, layers)
        found = [(name, _spots_of(name, word, self.trace)) for name in names]
        bare = [name for name, spots in found if not spots]
        if bare and len(bare) == len(found):
            more = f" (and {len(bare) - 1} more)" if len(bare) > 1 else ""
            inner = glob_of(bare[0], self.method, self.trace)
            hint = f'for what lies in it write modules: "{inner}"' if inner else None
            self.refuse(f"{bare[0]!r}{more} is no place to attach: {no_place(bare[0], self.trace)}", *word, hint=hint)
        for name in bare:
            if _is_map(name, self.trace):
                self.passed_by.setdefault(no_place(name, self.trace), {})[name] = None
        return [spot for _, spots in found for spot in spots]

    def matches(self, glob: str, position: int, layers: Sequence[Layer]) -> tuple[str, ...]:
        """The modules that a glob names, inside the chosen layers where layers or towers are chosen."""
        names = tuple(name for name in self.trace.modules if name and fnmatchcase(name, glob))
        if not names:
            self.refuse(f"no module is called {glob!r}", "modules", position, hint=nearest_module(glob, self.trace))
        if not self.restricted:
            return names
        inside = tuple(name for name in names if any(within(name, path) for layer in layers for path in layer.paths))
        if names and not inside and layers:
            self.refuse(f"no module {glob!r} is in the chosen layers", "modules", position)
        return inside

    @property
    def restricted(self) -> bool:
        """Whether it names layers or towers, and so leaves out what lies in none."""
        return self.method.layers != "all" or self.method.towers is not None


Taken = tuple[Entry, tuple[Spot, ...]]  # an entry, and the sites that it takes


def _places(layer: Layer, name: str) -> list[tuple[str, Unit, Site]]:
    """The first unit's site of a name; of several attentions that are units of their own, each one's."""
    first, whole = layer.find(name), dotted(name.rpartition(".")[0], "attention")
    if first is None or not first[1].site(whole):
        return [first] if first else []
    own = [(path, unit, unit.site(name)) for path, unit in layer.units if unit.site(whole)]
    return [(path, unit, site) for path, unit, site in own if isinstance(site, Projection | Attention)] or [first]


def _lacks_part(layer: Layer, name: str, trace: Trace) -> bool:
    """Whether a layer among others has no attention at all, or no feed-forward, and so none of its sites."""
    if not _is_of_feed(name):
        return not layer.attends
    traced = not any(within(path, layer.path) for path in trace.untraced)
    mixed = not all(other.attends for other in trace.layers if other.tower == layer.tower)
    return mixed and traced and not any(_is_of_feed(site) for site in layer.site_names())


def _is_of_feed(name: str) -> bool:
    """Whether a site is a feed-forward or one of its projections."""
    return name.startswith("ffn")


def _last_of(layers: str | int | tuple[int, ...]) -> tuple[int, ...]:
    """Where the highest index stands in a list of them; nowhere in a text."""
    return (layers.index(max(layers)),) if isinstance(layers, tuple) and layers else ()


def _embedding(trace: Trace, word: tuple[Step, ...]) -> list[Spot]:
    """The input embedding, which lies in no layer."""
    outside = [(path, unit) for path, unit in trace.others if not around(trace.layers, path)]
    sites = [(path, unit, unit.site(EMBEDDING)) for path, unit in outside]
    return [Spot(None, path, unit, site, word) for path, unit, site in sites if isinstance(site, Embedding)]


def _spots_of(module: str, word: tuple[Step, ...], trace: Trace) -> list[Spot]:
    """The sites that a module is: several for the parts of a fused projection."""
    inside = [(layer, path, unit) for layer in trace.layers for path, unit in layer.units]
    outside = [(around(trace.layers, path), path, unit) for path, unit in trace.others]
    spots = [Spot(*place, site, word) for place in (*inside, *outside) for site in place[2].sites]
    return [spot for spot in spots if spot.module == module]


def _is_map(module: str, trace: Trace) -> bool:
    """Whether a module is a linear map or an embedding, or has a matrix as they have."""
    found = trace.model.get_submodule(module)
    return isinstance(found, nn.Linear | nn.Embedding) or (module in trace.fixed and not is_norm(found))


def _block(layer: Layer) -> str:
    """The class of a layer's block, or of its first unit; its path where it has none."""
    blocks = [unit for path, unit in layer.units if path == layer.path]
    return next((unit.base.__name__ for unit in (*blocks, *(u for _, u in layer.units))), layer.path)


def _article(name: str) -> str:
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"
