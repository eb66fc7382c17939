"""What a whole model reads: ids, pixels or sound, their sizes by its signature and its config."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import PreTrainedModel

from peftc.trace.record.meta import made_on, shapes_only, values_as
from peftc.trace.record.numbers import numbered, on_numbers
from peftc.trace.record.pictures import sees, shapes
from peftc.trace.record.state import unchanged

# of a base's own forward, on inputs that it may not take
FAILURES = (
    ArithmeticError, AssertionError, AttributeError, LookupError, NameError, RuntimeError, TypeError, ValueError,
)  # fmt: skip
DECODER = "decoder_input_ids"
SOUNDS = ("input_features", "input_values")
WINDOW, STRIDE = 400, 320  # samples of the first frame of a wave, and between two frames
SHRINKS = 8  # frames that convolutions may make one of
_FOUND: WeakKeyDictionary[nn.Module, Feed] = WeakKeyDictionary()


@dataclass(frozen=True)
class Point:
    """Example sizes: every dimension differs from the other point's.

    `source` is the length of an encoder's input, `image` the side of an image in sides that the config names, `beyond`
    what its height and its width have beside that.
    """

    batch: int
    length: int
    past: int
    source: int
    image: int = 1
    beyond: tuple[int, int] = (0, 0)


POINTS = (Point(batch=2, length=7, past=6, source=9), Point(batch=3, length=11, past=5, source=13, image=2))


@dataclass(frozen=True)
class Input:
    """A tensor of a call: its parameter, its sizes at a point, what it holds; the axis that a mask covers."""

    name: str
    shape: Callable[[Point], tuple[int, ...]]
    holds: Literal["numbers", "ids", "ones"] = "numbers"
    axis: int | None = None


@dataclass(frozen=True)
class Feed:
    """What a model is called with: its inputs, the mask over the first of them that has one, and constants.

    `dtype` is that of what it sees or hears: a model in half precision takes pixels and sound in half precision.
    `paired`: its decoder is given ids of its own beside them.  `placed`: what names no device is made where it is.
    """

    inputs: tuple[Input, ...]
    mask: str | None = None
    constants: Mapping[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    paired: bool = False
    placed: bool = False

    def made(self, point: Point, device: torch.device, mask: bool) -> dict[str, Any]:
        """The keyword arguments at a point: zeros, and a mask that hides nothing."""
        dtypes = {"numbers": self.dtype, "ids": torch.long, "ones": torch.long}
        given = {i.name: zeros(i.shape(point), dtypes[i.holds], device) + (i.holds == "ones") for i in self.inputs}
        masked = next((i for i in self.inputs if i.axis is not None), None)
        if mask and self.mask and masked is not None and masked.axis is not None:
            sizes = masked.shape(point)
            sizes = sizes if masked.holds == "ids" else (point.batch, sizes[masked.axis])
            given[self.mask] = zeros(sizes, torch.long, device) + 1
        return given | dict(self.constants)

    def beside(self, model: nn.Module) -> AbstractContextManager[None]:
        """What a model runs in, that is given this."""
        return made_on(device_of(model)) if self.placed else nullcontext()

    def later(self) -> Feed:
        """What is read once the first tokens are in the cache: further ids, or more of what has none."""
        return replace(self, inputs=tuple(i for i in self.inputs if i.holds == "ids") or self.inputs, constants={})

    @property
    def is_text(self) -> bool:
        """Whether ids are all that is read."""
        return all(i.holds == "ids" for i in self.inputs)

    @property
    def ids(self) -> str | None:
        """The parameter that takes ids."""
        return next((i.name for i in self.inputs if i.holds == "ids"), None)


def zeros(sizes: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A tensor of ids, which are long, or of floats."""
    return torch.zeros(sizes, dtype=dtype, device=device)


def float_dtype(model: nn.Module) -> torch.dtype:
    """The dtype that a model computes in, by its first parameter that holds fractions."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def device_of(model: nn.Module) -> torch.device:
    """Where a model runs now."""
    return next((p.device for p in model.parameters()), torch.device("meta"))


def feed(model: nn.Module) -> Feed:
    """The only thing that a model may read, untried; else the first that it answers to, at both points."""
    if model not in _FOUND:
        dtype, paired = float_dtype(model), is_paired(model)
        found = [replace(candidate, dtype=dtype, paired=paired) for candidate in _candidates(model)]
        ways = [replace(candidate, placed=placed) for candidate in found for placed in (False, True)]
        _FOUND[model] = _answered(model, ways if len(found) > 1 else found)
    return _FOUND[model]


def reconsidered(model: nn.Module) -> bool:
    """Whether a model that fails on its feed runs on what is rarer: that is its feed from then on."""
    usual = _FOUND.get(model)
    rarer = next((candidate for candidate in (_rarer(usual) if usual else ()) if _runs(model, candidate)), None)
    if rarer is not None:
        _FOUND[model] = rarer
    return rarer is not None


def _answered(model: nn.Module, candidates: list[Feed]) -> Feed:
    """The only candidate, or the first that the model runs on; what it said to the first where it runs on none.

    Where it runs on none, it is given numbers.
    """
    if len(candidates) == 1:
        return candidates[0]
    refusals = []
    for candidate in candidates:
        try:
            for point, mask in zip(POINTS, (True, False), strict=True):
                _run(model, candidate, point, mask)
        except FAILURES as refusal:
            refusals.append(refusal)
        else:
            return candidate
    if (reads := on_numbers(model, lambda: _answered(model, candidates), FAILURES)) is not None:
        return reads
    raise refusals[0]


def _runs(model: nn.Module, candidate: Feed) -> bool:
    try:
        _run(model, candidate, POINTS[0], mask=True)
    except FAILURES:
        return False
    return True


def _run(model: nn.Module, candidate: Feed, point: Point, mask: bool) -> None:
    with torch.no_grad(), shapes_only(), values_as(0), unchanged(model), numbered(model), candidate.beside(model):
        model(**whole(model, candidate, point, mask))


def whole(model: nn.Module, reads: Feed, point: Point, mask: bool) -> dict[str, Any]:
    """What a model is called with at a point: its feed, and a decoder's own ids."""
    device = device_of(model)
    own = {DECODER: zeros((point.batch, point.length), torch.long, device)} if reads.paired else {}
    return reads.made(point, device, mask) | own


def is_paired(model: nn.Module) -> bool:
    """Whether a decoder may read ids of its own beside the encoder's input: it must, or the config says so."""
    own, config = parameters(model).get(DECODER), getattr(model, "config", None)
    return own is not None and (own.default is own.empty or bool(getattr(config, "is_encoder_decoder", False)))


def parameters(module: nn.Module) -> dict[str, inspect.Parameter]:
    """The parameters of a module's forward, self left out."""
    found = dict(inspect.signature(type(module).forward).parameters)
    found.pop(next(iter(found)))
    return found


def unknown(model: nn.Module) -> list[str]:
    """The parameters without a default that nothing is given for, whatever a model is called with."""
    given = {DECODER}.union(*([*(i.name for i in c.inputs), str(c.mask), *c.constants] for c in _candidates(model)))
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    required = (n for n, p in parameters(model).items() if p.default is p.empty and p.kind not in several)
    return [name for name in required if name not in given]


def _candidates(model: nn.Module) -> Iterator[Feed]:
    """What the names of its parameters let a model read: more of it first."""
    names, values = parameters(model), dict(values_of(getattr(model, "config", None)))
    mask = "attention_mask" if "attention_mask" in names else None
    seen = [*_pictures(model, values)]
    other = [*(i for i in seen if i.name == "pixel_values"), *_sounds(names, values)]
    constants = {name: True for name in ("interpolate_pos_encoding",) if name in names}
    if not other:
        ids, masked = _roles(model, names)
        yield Feed((_ids(ids, is_paired(model)),), masked)
        if masked not in (None, mask):
            yield Feed((_ids(ids, is_paired(model)),))
        yield from (Feed((picture,)) for picture in seen)
        return
    texts = ["input_ids", *(name for name in names if _needs_ids(name, names[name]))]
    ids_too = [tuple(_ids(name, is_paired(model)) for name in texts)] if "input_ids" in names else []
    for first in (*ids_too, ()):
        for sense in other:
            yield from () if first else _covered(sense, names, constants)
            yield Feed((*first, sense), mask, constants)
            yield Feed((*first, sense), None)
    yield from (Feed(alone, mask) for alone in ids_too)


def _rarer(usual: Feed) -> Iterator[Feed]:
    """Ids that a decoder reads too, or is given as many of; ids of as many choices for each example as examples.

    What is seen or heard without its mask, as where that covers what a model makes of it.
    """
    if usual.is_text:
        name = usual.inputs[0].name
        if usual.paired:
            alike = replace(usual, inputs=(_ids(name, paired=False),))
            yield from (replace(alike, paired=False), alike)
        yield replace(usual, inputs=(Input(name, lambda p: (p.batch, p.batch, p.length), "ids", axis=2),))
    elif usual.mask:
        yield replace(usual, mask=None)


def _covered(sense: Input, names: Collection[str], constants: Mapping[str, Any]) -> Iterator[Feed]:
    """What is heard under a mask of its own: one that may be left out, or one that must be given."""
    own, axis = f"{sense.name}_mask", sense.axis
    if own not in names or axis is None:
        return
    yield Feed((sense,), own, constants)
    yield Feed((sense, Input(own, lambda p: (p.batch, sense.shape(p)[axis]), "ones")), None, constants)


def _roles(model: nn.Module, names: Mapping[str, inspect.Parameter]) -> tuple[str, str | None]:
    """The parameters for the ids and for the mask: by transformers' words, else the first and the second."""
    if "input_ids" in names:
        return "input_ids", "attention_mask" if "attention_mask" in names else None
    first = next(iter(names))
    main = getattr(model, "main_input_name", first)
    ids = main if main in names else first
    others = [n for n in names if n != ids and names[n].default is None]
    return ids, "attention_mask" if "attention_mask" in names else next(iter(others), None)


def _needs_ids(name: str, parameter: inspect.Parameter) -> bool:
    """Whether a forward cannot do without further ids, as for a part that reads the text in words of its own."""
    return name.endswith("_input_ids") and parameter.default is inspect.Parameter.empty


def _ids(name: str, paired: bool) -> Input:
    return Input(name, lambda p: (p.batch, p.source if paired else p.length), "ids", axis=1)


def values_of(config: Any) -> Iterable[tuple[str, Any]]:
    """Attributes of a config and of its parts; the outermost last, so that they win."""
    for part in getattr(config, "sub_configs", ()):
        yield from values_of(getattr(config, part, None))
    yield from ((k, v) for k, v in vars(config).items() if v is not None) if config is not None else ()


def _pictures(model: nn.Module, values: Mapping[str, Any]) -> Iterator[Input]:
    """What a model sees: by transformers' word, else the first parameter where its code is no library's."""
    names = parameters(model)
    name = "pixel_values" if "pixel_values" in names else next(iter(names), "")
    if name == "pixel_values" or (sees(model) and not isinstance(model, PreTrainedModel)):
        yield from (Input(name, shape) for shape in shapes(model, values))


def _sounds(names: Collection[str], values: Mapping[str, Any]) -> Iterator[Input]:
    """A wave, or its spectrum with the time first or last, of any length; then of the length that the config names."""
    keys = ("num_mel_bins", "input_feat_per_channel", "feature_size", "feature_projection_input_dim", "input_dim")
    bins = next((values[key] for key in keys if isinstance(values.get(key), int)), 80)
    for name in (n for n in SOUNDS if n in names):
        yield Input(name, lambda p: (p.batch, WINDOW + STRIDE * (p.source - 1)), axis=1)
        yield Input(name, lambda p: (p.batch, SHRINKS * p.source, bins), axis=1)
        yield Input(name, lambda p: (p.batch, bins, SHRINKS * p.source), axis=2)
        for time in filter(None, (2 * values.get("max_source_positions", 0), values.get("max_length", 0))):
            yield Input(name, _of_length(time, bins), axis=1)
            yield Input(name, _of_length(bins, time), axis=2)


def _of_length(first: int, second: int) -> Callable[[Point], tuple[int, ...]]:
    return lambda p: (p.batch, first, second)
