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
from peftc.methods.base import ModuleCall
from peftc.plan import PlacedShared
from peftc.rewrite.passes import copied
from peftc.rewrite.program import Addition, Body, Program
from peftc.rewrite.simplify import without_idle
from peftc.runtime.examples import Filler, Recordings, real_module, recordings
from peftc.runtime.namespace import module_of
from peftc.trace.calls import Recorded
from peftc.trace.units import implementation

LARGEST = 250_000_000
TRIES = 30


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
    bare, neutral, full = (_emitted(p) for p in (_bare(program), _neutral(program), program))
    found = recordings(program.plan.trace.model)
    lines, cases = [], 0
    for body in program.bodies:
        shown = list(_shown(program, body, (bare, neutral, full), found))
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


def _neutral(program: Program) -> Program:
    """The program with additions that change nothing: as they start, and prefixes of no keys."""
    methods = {(p.path, p.name): p.method for p in program.plan.placements}

    def call(path: str, name: str, given: ModuleCall) -> ModuleCall:
        method = methods.get((path, name))
        return (method.neutral(given) if method else None) or given

    def quiet(addition: Addition) -> Addition:
        return Addition(addition.name, {p: call(p, addition.name, c) for p, c in addition.calls.items()})

    bodies = [replace(b, additions=tuple(quiet(a) for a in b.additions)) for b in program.bodies]
    shared = [replace(s, module=replace(s.module, call=_neutral_shared(s))) for s in program.shared]
    return replace(program, bodies=tuple(bodies), shared=tuple(shared))


def _neutral_shared(shared: PlacedShared) -> ModuleCall:
    call = shared.module.call
    return shared.members[0].method.neutral(call) or call


def _emitted(program: Program) -> ModuleType:
    return module_of("proof", printed(program).text)


def _shown(
    program: Program, body: Body, emitted: tuple[ModuleType, ModuleType, ModuleType], found: Recordings
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
    run, base = _Run(program, body, module, calls), body.unit.base.__name__
    bare, neutral, full = emitted
    yield f"without additions equal to {base}, bit for bit, gradients too", run.equal(bare)
    if run.exact:
        yield f"with additions equal to {base} at initialisation, bit for bit", run.identity(neutral)
    else:
        bar = "with a prefix of no keys, and the rest at initialisation, equal to"
        yield f"{bar} {base} to 1e-5", run.identity(neutral)
    yield "every parameter that trains has a gradient, no other has one", run.gradients(full)


class _Run:
    """One unit under every case: the base's module, and the class that was emitted for it."""

    def __init__(self, program: Program, body: Body, module: nn.Module, calls: Sequence[tuple[str, Recorded]]) -> None:
        self.program, self.body, self.module, self.calls = program, body, module, calls
        self.path = body.paths[0]
        placements = [p for p in program.plan.placements if p.path == self.path]
        self.exact = all(p.method.identity_at_init for p in placements)

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
        """Outputs of the emitted class whose additions have no effect, against the base's; they draw no dropout."""
        cases = CASES[::3] if self.exact else CASES[:1]
        for case in cases:
            base, own = self._real(case), self._attached(emitted, case, neutral=True)
            for addition in self.body.additions:
                own.get_submodule(addition.name).eval()
            for what, call in self.calls:
                wanted, found = (_run(module, call, case)[0] for module in (base, own))
                self._same(wanted, found, f"no effect, {what}, {case}", self.exact)
        return len(cases) * len(self.calls)

    def gradients(self, emitted: ModuleType) -> int:
        """Which parameters get a gradient once the additions are no longer as they started.

        At one point a relu may hide some: up to TRIES points are tried before a parameter counts as never reached.
        """
        moved: set[str] = set()
        for attempt in range(TRIES):
            own = self._attached(emitted, CASES[0], neutral=False)
            present = dict(own.named_parameters())
            trained = {name for name in present if f"{self.path}.{name}" in self.program.trained}
            for name, parameter in present.items():
                parameter.requires_grad_(name in trained)
                if name in trained:
                    _perturb(parameter, attempt)
            _run(own, self.calls[attempt % len(self.calls)][1], CASES[0], freeze=False)
            moved |= {name for name, p in present.items() if p.grad is not None and bool(p.grad.ne(0).any())}
            if moved == trained:
                return attempt + 1
        raise Defect(f"{self.body.name}: gradients of {sorted(moved ^ trained)} are not as planned")

    def _real(self, case: Case) -> nn.Module:
        module = real_module(self.module, 7, case.dtype).train(case.training)
        config: Any = getattr(module, "config", None)
        if config is not None:
            config._attn_implementation = "eager" if case.eager else implementation(self.module)
        return module

    def _attached(self, emitted: ModuleType, case: Case, neutral: bool) -> nn.Module:
        module: Any = self._real(case)
        module.__class__ = getattr(emitted, self.body.name)
        owner = nn.Module()
        for shared in self.program.shared:
            call = _neutral_shared(shared) if neutral else shared.module.call
            owner.add_module(shared.name, getattr(modules, call.name)(**dict(call.arguments)))
        emitted_any: Any = emitted
        before = set(module._modules)
        module.attach(owner, dict(_numbers(emitted_any))[self.path])
        for name in [n for n in module._modules if n not in before]:
            _initialise(module.get_submodule(name), emitted_any)
        _initialise(owner, emitted_any)
        attached: nn.Module = module.to(case.dtype).train(case.training)
        return attached

    def _same(self, base: Any, own: Any, where: str, exact: bool = True) -> None:
        for a, b in zip(_tensors(base), _tensors(own), strict=True):
            if not (torch.equal(a, b) if exact else a.shape == b.shape and torch.allclose(a, b, rtol=1e-5, atol=1e-5)):
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


def _perturb(parameter: nn.Parameter, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))


def _run(module: nn.Module, call: Recorded, case: Case, freeze: bool = True) -> tuple[Any, Any]:
    """Outputs, and the gradients of the parameters, of one call on inputs that depend on the call alone."""
    config: Any = getattr(module, "config", None)
    fill = Filler(5, case.dtype, getattr(config, "_attn_implementation", "sdpa") == "eager")
    named, extra = fill(dict(call.named)), fill(dict(call.extra))
    module.zero_grad(set_to_none=True)
    if freeze:
        module.requires_grad_(True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        outputs = type(module).forward(module, **named, **extra)
    total = sum((t.float() * _weights(t)).sum() for t in _tensors(outputs) if t.requires_grad)
    if isinstance(total, torch.Tensor):
        total.backward()
    return outputs, [p.grad for p in module.parameters() if p.grad is not None]


def _weights(tensor: torch.Tensor) -> torch.Tensor:
    return torch.randn(tensor.shape, generator=torch.Generator().manual_seed(tensor.dim()))


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value.detach() if not value.requires_grad else value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
