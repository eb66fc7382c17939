"""Where a method may attach: places in the graph of a unit, found by data flow."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import fx, nn

    from peftc.graph.together import Together


@dataclass(frozen=True)
class Projection:
    """A linear map y = W x, or the rows of a fused one that make one of its parts.

    `node` calls the module; `output` is the first node that holds this part's features alone (`node` itself where
    the map is not fused, or no node does).  `rows` are the part's rows of W in the order of its features, None all.
    Where `output` is not (batch, length, outputs), it is that with the features unflattened to `dims` and all axes
    permuted by `order`: the heads of an interleaved projection; `ones` are axes of one entry that it does not have.
    `bare`: no module has W alone, and `module` names the parameter that it is, or is a part of.
    `flat`: batch and length are not known to be two axes; `turned`: the length stands first.  `again`: the nodes
    that call the module beside `node`.
    """

    name: str
    module: str
    node: str
    output: str
    inputs: int
    outputs: int
    rows: tuple[int, ...] | None = None
    dims: tuple[int, ...] = ()
    order: tuple[int, ...] = ()
    ones: tuple[int, ...] = ()
    bias: bool = False
    bare: bool = False
    flat: bool = False
    turned: bool = False
    causal: bool = False
    mask: str | None = None
    again: tuple[str, ...] = ()

    @property
    def among(self) -> bool:
        """Whether no node holds this part alone: `output` is the call, in whose features its rows are in line."""
        return self.rows is not None and self.output == self.node

    @property
    def label(self) -> str:
        """A name for attributes: the module's own where it is whole, the part's name where it is fused or bare."""
        name = self.name if self.bare or self.rows is not None else self.module.rsplit(".", 1)[-1]
        return name.replace(".", "_") or self.name.rsplit(".", 1)[-1]


@dataclass(frozen=True)
class Copied:
    """A node that the scores of learnt keys pass too: what it reads, and whose copies they read instead.

    `resized`: it is a view that names the number of keys.  `bias` is one that it adds, (…, 1, keys), counted from the
    last key: of it the copy takes what each query's own key has, so that learnt keys are as near to all queries.
    """

    node: str
    reads: tuple[tuple[str, str], ...]
    resized: bool = False
    bias: str | None = None


PLAIN, TURNED = (0, 1, 2, 3), (0, 1, 3, 2)


@dataclass(frozen=True)
class Written:
    """An attention that is written out: `scores` is query times key, with `heads` of the widths of one head.

    `copied` leads from the scores to the softmax, without what masks or biases single keys; what comes out there is
    the copy of `last`.  `views` are those of the weights that name the number of keys, `masks` fill some weights.
    `scales` multiply all keys by one number each, in order.
    The products take keys and values as (batch, heads[, windows], length, width), their axes permuted by these orders.
    """

    scores: str
    softmax: str
    heads: int
    key_width: int
    value_width: int
    copied: tuple[Copied, ...]
    last: str
    views: tuple[str, ...] = ()
    masks: tuple[str, ...] = ()
    key_order: tuple[int, ...] = TURNED
    value_order: tuple[int, ...] = PLAIN
    scales: tuple[str, ...] = ()


@dataclass(frozen=True)
class Windowed:
    """An attention that is written out, in which each query reads other keys: (batch, length, heads, …) throughout.

    `softmax` reads the products of the rows of `query` with some keys; `weights` is what it makes, as the values meet
    it, and `output` what they make together.
    """

    query: str
    softmax: str
    weights: str
    output: str
    heads: int
    key_width: int
    value_width: int


@dataclass(frozen=True)
class Attention:
    """One attention's keys and values: `node` is the call, of whose arguments `key` is one.

    key: (batch, heads, length, key_width / heads).  `input` is the attention's input x, of width `width`.
    `written`: it is several calls, or products around a softmax, of which `node` is the last; a sentence says why
    nothing can join it.  `hides`: without a mask, query i sees the keys 0 to i alone.  `flat`: batch and length of x
    are not known to be two axes; `turned`: the length stands first.  `others`: what it is in other branches.
    """

    name: str
    node: str
    key: str
    input: str
    width: int
    key_width: int
    value_width: int
    written: Written | Windowed | Together | str | None = None
    hides: bool = False
    flat: bool = False
    turned: bool = False
    causal: bool = False
    mask: str | None = None
    others: tuple[Attention, ...] = ()

    @property
    def label(self) -> str:
        return self.name.replace(".", "_")


@dataclass(frozen=True)
class Sublayer:
    """A tensor `output` that joins a `residual` (in the node `sum`): the attention's or the feed-forward's output.

    `norm` is the norm that reads the sum and nothing else does (post-norm), or None; `input` is the sublayer's input x.
    `flat`: in all of them batch and length are one axis; `turned`: the length stands before the batch.  Of a sublayer
    that is a unit of its own, residual and sum lie outside.
    """

    name: str
    output: str
    residual: str | None
    sum: str | None
    norm: str | None
    input: str
    width: int
    flat: bool = False
    turned: bool = False
    causal: bool = False
    mask: str | None = None

    @property
    def label(self) -> str:
        return self.name.removesuffix("_output").replace(".", "_")


@dataclass(frozen=True)
class Embedding:
    """A table of `count` rows of `width` numbers, looked up by `node`."""

    name: str
    module: str
    node: str
    count: int
    width: int
    causal: bool = False
    mask: str | None = None

    @property
    def label(self) -> str:
        return self.module.rsplit(".", 1)[-1] or self.name.rsplit(".", 1)[-1]


Site = Projection | Attention | Sublayer | Embedding


@dataclass(frozen=True, eq=False)
class Unit:
    """A distinct traced forward: its base class, its graph (never edited), its sites, and every module that runs it."""

    name: str
    base: type[nn.Module]
    graph: fx.Graph
    sites: tuple[Site, ...]
    paths: tuple[str, ...]
    fingerprint: str = ""

    def site(self, name: str) -> Site | None:
        return next((s for s in self.sites if s.name == name), None)


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer of a tower: the block's path, its units as (path in the model, unit), and whether it attends."""

    tower: str
    index: int
    path: str
    units: tuple[tuple[str, Unit], ...]
    attends: bool = True

    @property
    def paths(self) -> tuple[str, ...]:
        """The block's path, and those of units that lie beside it."""
        return (self.path, *(path for path, _ in self.units if not within(path, self.path)))

    def find(self, name: str) -> tuple[str, Unit, Site] | None:
        """The unit instance that has a site of this name: (path, unit, site)."""
        for path, unit in self.units:
            if site := unit.site(name):
                return path, unit, site
        return None

    def site_names(self) -> tuple[str, ...]:
        """Every site name of the layer, in the order of the data flow."""
        return tuple(dict.fromkeys(s.name for _, unit in self.units for s in unit.sites))


def dotted(*paths: str) -> str:
    """A path made of others, one below the other; an empty one is the model, or the unit, itself."""
    return ".".join(filter(None, paths))


def within(name: str, path: str) -> bool:
    """Whether a dotted name is a path or lies below it."""
    return not path or name == path or name.startswith(path + ".")


def around(layers: Iterable[Layer], name: str) -> Layer | None:
    """The layer that a module lies in."""
    return next((layer for layer in layers if any(within(name, path) for path in layer.paths)), None)


@dataclass(frozen=True)
class Parameter:
    """A parameter of the base: its shape, and what it is to the selective methods.

    A norm's bias is both.  `head`: it lies outside the base model.  `names` has all of a tied one, first its own.
    """

    name: str
    shape: tuple[int, ...]
    is_bias: bool
    is_norm: bool
    head: bool
    names: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, eq=False)
class Trace:
    """The base as peftc sees it: the model on the meta device, its units and layers, its parameters (ties once).

    `untraced` are the modules that would be units but have no trace, and stay as they are: path -> why.  `fixed` are
    those inside layers whose matrix is used in a way that an addition to their output would not change: path -> why.
    `submodels` are the paths of models inside it that were run by themselves, for its own runs miss them; `unfed` those
    not run at all: path -> why.  `unread` are the layers that no gradient reaches, where it reaches others of their
    tower.  `refused` are calls beside a cache in which the base itself fails: which -> how.
    """

    model: nn.Module
    units: tuple[Unit, ...]
    layers: tuple[Layer, ...]
    others: tuple[tuple[str, Unit], ...]
    parameters: Mapping[str, Parameter]
    modules: tuple[str, ...]
    untraced: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, str] = field(default_factory=dict)
    submodels: tuple[str, ...] = ()
    unfed: Mapping[str, str] = field(default_factory=dict)
    unread: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)

    def instances(self) -> Iterator[tuple[str, Unit]]:
        """Every unit at every path, the layers first."""
        for layer in self.layers:
            yield from layer.units
        yield from self.others

    def towers(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(layer.tower for layer in self.layers))
