"""The numerical proof: what was emitted, run beside the base's own forward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import torch
from torch import nn

from peftc import modules
from peftc.emit.artifact import printed
from peftc.errors import Defect
from peftc.rewrite.passes import copied
from peftc.rewrite.program import Body, Program
from peftc.rewrite.simplify import without_idle
from peftc.runtime.examples import Filler, Recordings, real_module, recordings
from peftc.runtime.namespace import module_of
from peftc.trace.calls import Recorded

LARGEST = 250_000_000


@dataclass(frozen=True)
class Proof:
    """What was shown, in sentences; `cases` counts the comparisons behind them."""

    lines: tuple[str, ...]
    cases: int


@dataclass(frozen=True)
class Case:
    """How a unit is run: training or not, the dtype, and eager or torch's own attention."""

    training: bool
    dtype: torch.dtype
    eager: bool


CASES = tuple(
    Case(training, dtype, eager)
    for training in (False, True)
    for dtype, eager in ((torch.float32, False), (torch.float32, True), (torch.bfloat16, False))
)


def prove(program: Program) -> Proof:
    """Raise a Defect unless the program keeps its promises; say what was shown.

    Without its placements every unit equals the base's forward bit for bit, gradients too; with those that claim it, it
    is the base at first; once its additions moved, every parameter that trains has a gradient, and no other does.
    """
    if not program.bodies:
        return Proof(("no unit is rewritten",), 0)
    bare, full = _emitted(_bare(program)), _emitted(program)
    found = recordings(program.plan.trace.model)
    lines, cases = [], 0
    for body in program.bodies:
        shown = list(_shown(program, body, bare, full, found))
        cases += sum(count for _, count in shown)
        lines += [f"{body.name}: {line}" for line, _ in shown]
    return Proof(tuple(lines), cases)


def _bare(program: Program) -> Program:
    """The same units as the base has them, inlined, with nothing added."""
    bodies = []
    for body in program.bodies:
        graph = copied(body.unit.graph)
        without_idle(graph)
        bodies.append(replace(body, graph=graph, additions=()))
    return replace(program, bodies=tuple(bodies), shared=(), trained=())


def _emitted(program: Program) -> ModuleType:
    return module_of("proof", printed(program).text)


def _shown(
    program: Program, body: Body, bare: ModuleType, full: ModuleType, found: Recordings
) -> Iterator[tuple[str, int]]:
    module = program.plan.trace.model.get_submodule(body.paths[0])
    calls = list(found.calls(module))
    size = sum(p.numel() for p in module.parameters())
    if size > LARGEST:
        yield f"not run: {size:,} parameters are more than {LARGEST:,}", 0
        return
    if not calls:
        yield "not run: it has no children to record", 0
        return
    run = _Run(program, body, module, calls)
    yield f"without additions equal to {body.unit.base.__name__}, bit for bit, gradients too", run.equal(bare)
    if all(p.method.identity_at_init for p in run.placements):
        yield f"with additions equal to {body.unit.base.__name__} at initialisation", run.identity(full)
    yield "every parameter that trains has a gradient, no other has one", run.gradients(full)


class _Run:
    """One unit under every case: the base's module, and the class that was emitted for it."""

    def __init__(self, program: Program, body: Body, module: nn.Module, calls: Sequence[tuple[str, Recorded]]) -> None:
        self.program, self.body, self.module, self.calls = program, body, module, calls
        self.path = body.paths[0]
        self.placements = [p for p in program.plan.placements if p.path == self.path]

    def equal(self, emitted: ModuleType) -> int:
        """Outputs and gradients of the emitted class without additions, against the base's."""
        for case in CASES:
            base = self._real(case)
            own = self._real(case)
            own.__class__ = getattr(emitted, self.body.name)
            for what, call in self.calls:
                self._same(_run(base, call, case), _run(own, call, case), f"{what}, {case}")
        return len(CASES) * len(self.calls)

    def identity(self, emitted: ModuleType) -> int:
        """Outputs of the emitted class with fresh additions, against the base's; additions draw no dropout."""
        for case in CASES[::3]:
            base, own = self._real(case), self._attached(emitted, case)
            for addition in self.body.additions:
                own.get_submodule(addition.name).eval()
            for what, call in self.calls:
                self._same(_run(base, call, case)[0], _run(own, call, case)[0], f"at initialisation, {what}, {case}")
        return len(CASES[::3]) * len(self.calls)

    def gradients(self, emitted: ModuleType) -> int:
        """Which parameters get a gradient once the additions are no longer as they started."""
        own = self._attached(emitted, CASES[0])
        present = dict(own.named_parameters())
        trained = {name for name in present if f"{self.path}.{name}" in self.program.trained}
        for name, parameter in present.items():
            parameter.requires_grad_(name in trained)
            if name in trained:
                _perturb(parameter)
        _run(own, self.calls[0][1], CASES[0], freeze=False)
        moved = {name for name, p in own.named_parameters() if p.grad is not None and bool(p.grad.ne(0).any())}
        if moved != trained:
            raise Defect(f"{self.body.name}: gradients of {sorted(moved ^ trained)} are not as planned")
        return 1

    def _real(self, case: Case) -> nn.Module:
        module = real_module(self.module, 7, case.dtype).train(case.training)
        config: Any = getattr(module, "config", None)
        if config is not None:
            config._attn_implementation = "eager" if case.eager else "sdpa"
        return module

    def _attached(self, emitted: ModuleType, case: Case) -> nn.Module:
        module: Any = self._real(case)
        module.__class__ = getattr(emitted, self.body.name)
        owner = nn.Module()
        for shared in self.program.shared:
            owner.add_module(
                shared.name, getattr(modules, shared.module.call.name)(**dict(shared.module.call.arguments))
            )
        emitted_any: Any = emitted
        before = set(module._modules)
        module.attach(owner, dict(_numbers(emitted_any))[self.path])
        for name in [n for n in module._modules if n not in before]:
            _initialise(module.get_submodule(name), emitted_any)
        _initialise(owner, emitted_any)
        return module.to(case.dtype).train(case.training)  # type: ignore[no-any-return]

    def _same(self, base: Any, own: Any, where: str) -> None:
        for a, b in zip(_tensors(base), _tensors(own), strict=True):
            if not torch.equal(a, b):
                off = (a.float() - b.float()).abs().max().item()
                raise Defect(f"{self.body.name} differs from {self.body.unit.base.__name__} by {off:.3g}: {where}")


def _numbers(emitted: Any) -> Iterator[tuple[str, int | None]]:
    for pattern in emitted.UNITS:
        yield from emitted.expand(pattern)


def _initialise(owner: nn.Module, emitted: Any) -> None:
    with torch.no_grad():
        for path, module in owner.named_modules():
            initial: Any = getattr(module, "initial", None)
            for name, parameter in module.named_parameters(recurse=False):
                parameter.copy_(initial(name, emitted.Draw(f"{path}.{name}", parameter.shape)))


def _perturb(parameter: nn.Parameter) -> None:
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))


def _run(module: nn.Module, call: Recorded, case: Case, freeze: bool = True) -> tuple[Any, Any]:
    """Outputs, and the gradients of the parameters, of one call on inputs that depend on the call alone."""
    fill = Filler(5, case.dtype, case.eager)
    named, extra = fill(dict(call.named)), fill(dict(call.extra))
    module.zero_grad(set_to_none=True)
    if freeze:
        module.requires_grad_(True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        outputs = type(module).forward(module, **named, **extra)
    total = sum((t.float() * _weights(t)).sum() for t in _tensors(outputs) if t.requires_grad)
    if isinstance(total, torch.Tensor):
        total.backward()  # type: ignore[no-untyped-call]
    return outputs, [p.grad for p in module.parameters() if p.grad is not None]


def _weights(tensor: torch.Tensor) -> torch.Tensor:
    return torch.randn(tensor.shape, generator=torch.Generator().manual_seed(tensor.dim()))


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value.detach() if not value.requires_grad else value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
