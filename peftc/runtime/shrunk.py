"""A program again on a smaller config of its base, for units that are too large to be run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from peftc.errors import PeftcError
from peftc.plan import resolve
from peftc.rewrite import rewrite
from peftc.rewrite.program import Body, Program
from peftc.trace import trace_smaller

NARROW = 256
FACTORS = (16, 8, 4, 2)


@dataclass(frozen=True, eq=False)
class Shrunk:
    """The program of the same spec on smaller sizes, and which they are."""

    program: Program
    sizes: str


def shrunk(program: Program, bodies: Sequence[Body], largest: int) -> Shrunk | None:
    """The same bodies on a config whose widths are divided; None where no such config has their graphs."""
    model = program.plan.trace.model
    if not isinstance(model, PreTrainedModel):
        return None
    for factor in FACTORS:
        sizes = dict(_widths(model, bodies, factor))
        smaller = _smaller(program, model, sizes)
        if smaller is not None and all(_alike(body, smaller, largest) for body in bodies):
            return Shrunk(smaller, ", ".join(f"{key} {value}" for key, value in sizes.items()))
    return None


def size(program: Program, body: Body) -> int:
    """How many parameters of the base a body's unit has."""
    module = program.plan.trace.model.get_submodule(body.paths[0])
    return sum(p.numel() for p in module.parameters())


def _smaller(program: Program, model: PreTrainedModel, sizes: dict[str, int]) -> Program | None:
    """The program on these sizes; None where the base's class, or the spec, does not allow them."""
    try:
        trace = trace_smaller(model, sizes)
        return rewrite(resolve(program.plan.spec, trace), trace)
    except PeftcError:
        return None


def _widths(model: PreTrainedModel, bodies: Sequence[Body], factor: int) -> Iterator[tuple[str, int]]:
    """The config's integers that some dimension of a unit's parameters is a multiple of, divided."""
    modules = [model.get_submodule(path) for body in bodies for path in body.paths[:1]]
    dimensions = {extent for module in modules for p in module.parameters() for extent in p.shape}
    for key, value in sorted(vars(model.config).items()):
        wide = type(value) is int and value >= NARROW and value % factor == 0
        if wide and not key.startswith("_") and any(extent % value == 0 for extent in dimensions):
            yield key, value // factor


def _alike(body: Body, smaller: Program, largest: int) -> bool:
    """Whether a smaller program has a body that computes the same at the same places, and is small enough."""
    for other in smaller.bodies:
        if other.name == body.name and other.paths == body.paths:
            same = other.unit.fingerprint == body.unit.fingerprint and other.summary == body.summary
            return same and size(smaller, other) <= largest
    return False
