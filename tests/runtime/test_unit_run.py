"""What a run of one unit tells, and what it cannot tell: numbers that are none, and points that hide a gradient."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from peftc.emit.artifact import printed
from peftc.emit.machinery import expand
from peftc.errors import Defect
from peftc.plan import resolve
from peftc.rewrite import rewrite
from peftc.rewrite.program import Program
from peftc.runtime.examples import recordings
from peftc.runtime.namespace import module_of
from peftc.runtime.proof import prove, without_additions
from peftc.runtime.unit_run import UnitRun
from peftc.trace import trace_model
from tests.laws import spec
from tests.trace.nets import WIDTH, Block, Net, made


def program_of(kind: type[nn.Module], method: str) -> Program:
    plan = resolve(spec([{"method": method}, {"method": "adapter"}]), trace_model(made(kind)))
    return rewrite(plan, plan.trace)


def run_of(program: Program, bare: ModuleType) -> UnitRun:
    body = next(body for body in program.bodies if body.paths[0] == "blocks.0")
    return UnitRun.at(program, body, "blocks.0", recordings(program.plan.trace), {}, bare)


class Lost(Block):
    """Gives no number at all."""

    def prepared(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return x / 0 - x / 0


class Steep(Block):
    """A bias whose gradient is no number: a root at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.steep_bias = nn.Parameter(torch.ones(WIDTH))

    def prepared(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return x + torch.sqrt(self.steep_bias * 0)


class Hidden(Block):
    """A bias that a relu hides while it is negative."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_bias = nn.Parameter(torch.ones(WIDTH))

    def prepared(self, x: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return x + torch.relu(self.hidden_bias)


def test_a_base_that_gives_no_number_shows_nothing() -> None:
    said = prove(program_of(Lost, "lora")).lines
    assert "Lost: not run: by itself its own forward fails, or gives no finite number" in said


class Seeing(Net):
    """A map that pictures alone reach."""

    def __init__(self) -> None:
        super().__init__([Block(), Block()])
        self.project = nn.Linear(WIDTH, WIDTH)

    def forward(self, ids: torch.Tensor, seen: torch.Tensor | None = None) -> torch.Tensor:
        return super().forward(ids) + (0 if seen is None else self.project(seen))


def test_what_no_example_input_reaches_is_said_to_have_no_proof() -> None:
    plan = resolve(spec([{"method": "lora", "modules": ["project"]}]), trace_model(Seeing().eval()))
    assert prove(rewrite(plan, plan.trace)).lines == ("Linear: not run: no example input reaches it",)


def test_no_number_is_no_gradient() -> None:
    said = "at these inputs not even in the base's own forward: blocks.0.steep_bias"
    assert any(line.endswith(said) for line in prove(program_of(Steep, "bitfit")).lines)


def test_a_base_that_reaches_a_parameter_elsewhere_excuses_no_one() -> None:
    """At the first point it is hidden in both; where it moved, in the emitted class alone."""
    program = program_of(Hidden, "bitfit")
    emitted = module_of("hidden", printed(program).text)
    run = run_of(program, module_of("bare", printed(without_additions(program)).text))
    with torch.no_grad():
        dict(run.module.named_parameters())["hidden_bias"].fill_(-0.05)
    assert run.gradients(emitted)[1] == set()
    other: Any = emitted
    forward = other.Hidden.forward
    other.Hidden.forward = lambda self, *args, **named: forward(_frozen(self), *args, **named)
    with pytest.raises(Defect, match=r"gradients of \['blocks.0.hidden_bias'\]"):
        run.gradients(emitted)


def _frozen(module: nn.Module) -> nn.Module:
    dict(module.named_parameters())["hidden_bias"].requires_grad_(False)
    return module


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda x: x.double(), r"gives \(1, 5, 8\) of torch.float64, not \(1, 5, 8\) of torch.float32 as Block"),
        (lambda x: x[..., :3], r"gives \(1, 5, 3\) of torch.float32, not \(1, 5, 8\) of torch.float32 as Block"),
    ],
)
def test_another_dtype_or_shape_is_said(change: Callable[[torch.Tensor], torch.Tensor], says: str) -> None:
    class Other(Block):
        def forward(self, *args: Any, **named: Any) -> torch.Tensor:
            return change(super().forward(*args, **named))

    emitted: Any = ModuleType("other")
    emitted.UNITS, emitted.expand = {"blocks.{0-1}": Other}, expand
    with pytest.raises(Defect, match=says):
        run_of(program_of(Block, "lora"), emitted)
