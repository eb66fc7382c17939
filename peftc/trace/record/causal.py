"""What looks ahead in a model whose code does not say so: runs on two sequences that differ at their end."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import torch
from torch import nn

from peftc.graph.sites import within
from peftc.trace.record.feeds import DECODER, FAILURES, Feed, Point, feed, reconsidered
from peftc.trace.record.nested import tensors_in
from peftc.trace.record.observed import Observed
from peftc.trace.record.state import unchanged

NUMBER = re.compile(r"\d+")
LENGTHS = (16, 4)  # some models pool what they read, several times; some read no more than a few
FIRST = (1, 10)  # ids: one of them may stand for padding, or not be there
Loaded = Callable[[str], nn.Module]
LooksBack = Callable[[str], bool]


def looking_back(model: nn.Module, observed: Observed, loaded: Loaded) -> LooksBack:
    """Whether the module at a path never looks ahead: it gets new positions alone, beside a cache, or a run shows it.

    `loaded` gives the model, or the one in it that was run by itself, with weights.  Where that has fewer layers and
    lacks the path, the same place in its other layers answers; where it has no such place, all of its modules do.
    Nobody asks it where the traced one reads no ids.
    """
    answers = cache(lambda root: causal_paths(loaded(root)) if feed(model.get_submodule(root)).ids else {})

    def check(path: str) -> bool:
        if observed.continues(model.get_submodule(path)):
            return True
        root = next((other for other in observed.submodels if within(path, other)), "")
        said, own = answers(root), path.removeprefix(root).removeprefix(".")
        like = [answer for other, answer in said.items() if NUMBER.sub("", other) == NUMBER.sub("", own)]
        return said[own] if own in said else bool(said) and all(like or said.values())

    return check


@torch.no_grad()
def causal_paths(model: nn.Module) -> Mapping[str, bool]:
    """path -> whether a module of a loaded model makes the same of earlier positions, whatever the last id is.

    A module has the answer of all modules that the same ids reach; an encoder and its decoder are asked by ids of their
    own.  Empty where the model reads no ids.  Where it does not run, all counts as causal: then nothing may look ahead.
    """
    if next(model.parameters()).device.type == "meta":
        return {}
    with unchanged(model):
        model.eval()
        reads = feed(model)
        paths = {module: path for path, module in model.named_modules()}
        if reads.ids is None:
            return {}
        answers = _asked(model, reads)
        if answers is None and reconsidered(model):
            answers = _asked(model, feed(model))
        own = {model: True} if answers is None else answers
        return {paths[m]: answer for m, answer in own.items() if m in paths}  # a forward may put others in their place


def _asked(model: nn.Module, reads: Feed) -> dict[nn.Module, bool] | None:
    """The answers at the first length that the model runs at; None where it runs at no length."""
    for length in LENGTHS:
        runs = [_run(model, reads, length, first) for first in FIRST]
        if ran := [run for run in runs if run is not None]:
            return {m: all(run.get(m, True) for run in ran) for run in ran for m in run}
    return None


def _run(model: nn.Module, reads: Feed, length: int, first: int) -> dict[nn.Module, bool] | None:
    """module -> whether all that the same ids reach look back alone; a decoder's own ids come before its encoder's.

    None where the model does not run on ids of this length.
    """
    device, found = next(model.parameters()).device, dict[nn.Module, bool]()
    given = reads.made(Point(2, length, 0, length), device, mask=False)
    ids = torch.arange(length, device=device) % 4 + first
    sizes = (2, *(1 for _ in given[str(reads.ids)].shape[2:]), length)
    pair = torch.stack([ids, ids.index_fill(0, ids.new_tensor([length - 1]), first + 4)]).view(sizes)
    names = (str(reads.ids), *([DECODER] if reads.paired else []))
    same = {name: torch.stack([ids, ids]).view(sizes) for name in names}
    differing = dict.fromkeys(reversed(same), pair)
    for name, value in given.items():  # what the ids do not reach may read something else, and that is read whole
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.dim() > 2 and len(value) == 2:
            differing[name] = torch.stack([value[0], value[1] + 1])
    for name, value in differing.items():
        with _compared(model, length) as seen:
            try:
                model(**given | same | {name: value})
            except FAILURES:
                return None
        own = [module for module in seen if module not in found]
        found |= dict.fromkeys(own, all(seen[module] for module in own))
    return found


@contextmanager
def _compared(model: nn.Module, length: int) -> Iterator[dict[nn.Module, bool]]:
    """Per module with an output that differs: whether it does not before the last position.

    Of states that are more or fewer than the ids, as learnt ones that read them are, it is the first that must not.
    """
    same: dict[nn.Module, bool] = {}

    def compare(module: nn.Module, args: Any, outputs: Any) -> None:
        for states in tensors_in(outputs):
            turned = states.transpose(0, 1) if states.dim() == 3 and states.shape[0] == length else states
            if turned.dim() == 3 and len(turned) == 2 and turned.shape[1] > 1 and turned.is_floating_point():
                one, other = turned.float()
                off = (one - other).abs().amax(1)
                earlier, rounding = off[: -1 if len(off) == length else 1], 1e-5 * one.abs().max()
                if off.max() > rounding:
                    same[module] = bool(earlier.max() <= rounding) and same.get(module, True)

    with ExitStack() as stack:
        for module in model.modules():
            stack.callback(module.register_forward_hook(compare).remove)
        yield same
