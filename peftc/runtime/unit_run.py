"""One unit under every case: the base's own module, and the class that was emitted for it, on the same inputs."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import torch
from torch import nn

from peftc import modules
from peftc.errors import Defect
from peftc.graph.sites import Projection
from peftc.plan import PlacedShared
from peftc.rewrite.program import Body, Program
from peftc.runtime.called import attempted, learns, outputs, perturb, run
from peftc.runtime.examples import Filler, Recordings, real_module
from peftc.trace.record.attention_choice import implementation
from peftc.trace.record.calls import Recorded
from peftc.trace.record.nested import tensors_in

TRIES = 30
SEED = 5  # of the inputs
Drawn = dict[tuple[str, torch.Size], torch.Tensor]


@dataclass(frozen=True)
class Case:
    """How a unit is run: training or not, the dtype, and eager or torch's own attention."""

    training: bool
    dtype: torch.dtype
    eager: bool


CASES = (
    Case(training=False, dtype=torch.float32, eager=False),
    Case(training=True, dtype=torch.float32, eager=True),
    Case(training=True, dtype=torch.bfloat16, eager=False),
    Case(training=False, dtype=torch.bfloat16, eager=False),
    Case(training=False, dtype=torch.float32, eager=True),
)  # every pair of two choices but eager attention in bfloat16; after the first, each has its opposite


@dataclass(frozen=True, eq=False)
class UnitRun:
    """The unit at one path of a program, with random weights, and the calls that its model makes to it."""

    program: Program
    body: Body
    path: str
    module: nn.Module
    calls: Sequence[tuple[str, Recorded]]
    left: int
    drawn: Drawn

    @classmethod
    def at(cls, program: Program, body: Body, path: str, found: Recordings, drawn: Drawn, bare: ModuleType) -> UnitRun:
        """With the calls on which the base itself runs and has gradients; `left` counts the others.

        There the class of `bare`, which adds nothing, gives the same outputs and gradients.
        """
        meta = program.plan.trace.model.get_submodule(path)
        calls = tuple(found.calls(meta, body.unit.graph))
        whole = cls(program, body, path, real_module(meta), calls, 0, drawn)
        able = tuple(whole._compared(bare, CASES[0], calls))
        return replace(whole, calls=able, left=len(calls) - len(able))

    @property
    def exact(self) -> bool:
        """Whether every method here claims to be the identity at initialisation."""
        return all(p.method.identity_at_init for p in self.program.plan.placements if p.path == self.path)

    @property
    def parts(self) -> frozenset[str]:
        """The nodes of the parts of fused projections that are changed here."""
        return fused_parts(self.program, self.path)

    @property
    def in_place(self) -> bool:
        """Whether the base changes sums in place: apart they lie otherwise in memory, and kernels round otherwise."""
        return any(node.meta.get("in_place") for node in self.body.unit.graph.nodes)

    def _by(self, case: Case) -> float:
        """How far numbers may be off the base's."""
        return (1e-5 if case.dtype is torch.float32 else 1e-2) if self.in_place else 0.0

    @property
    def chosen(self) -> Sequence[tuple[Case, Sequence[tuple[str, Recorded]]]]:
        """The other cases: the first scenario under all, every other one under two that are opposite; a size each."""
        scenarios: dict[str, list[tuple[str, Recorded]]] = {}
        for what, call in self.calls:
            scenarios.setdefault(what.partition(", ")[2], []).append((what, call))
        first, *others = scenarios.values()
        pairs = [(i, case, [first, *others[i % 2 :: 2]]) for i, case in enumerate(CASES)]
        return [(case, [sizes[i // 2 % len(sizes)] for sizes in some]) for i, case, some in pairs[1:]]

    def equal(self, emitted: ModuleType) -> int:
        """Outputs and gradients of the class without additions against the base's; how often, with the first case's."""
        return len(self.calls) + sum(len(list(self._compared(emitted, case, calls))) for case, calls in self.chosen)

    def _compared(
        self, emitted: ModuleType, case: Case, calls: Sequence[tuple[str, Recorded]]
    ) -> Iterator[tuple[str, Recorded]]:
        """Those of the calls that the base itself runs: there the emitted class gives the same."""
        base, own = self._real(case), self._as(emitted, case)
        for what, call in calls:
            if expected := attempted(base, call, _filler(case, self.own)):
                self._same(expected, run(own, call, _filler(case, self.own)), f"{what}, {case}", self._by(case))
                yield what, call

    def identity(self, emitted: ModuleType, laid: ModuleType) -> int:
        """Outputs of the emitted class whose additions have no effect, against the base's; they draw no dropout.

        A kernel may round the same numbers otherwise in another layout.  Where a part of a fused projection is changed,
        the base is met to 1e-5, and `laid`, its own code with the layouts of what is added, bit for bit; so where it
        changes sums in place.
        """
        cases = [CASES[0], replace(CASES[0], training=True)] if self.exact else [CASES[0]]
        for case in cases:
            base, dense = self._real(case), self._as(laid, case)
            own, _ = self._attached(emitted, case, neutral=True)
            for addition in self.body.additions:
                own.get_submodule(addition.name).eval()
            for what, call in self.calls:
                wanted, found = (outputs(module, call, _filler(case, self.own)) for module in (base, own))
                where = f"no effect, {what}, {case}"
                self._same(wanted, found, where, self._by(case) if self.exact and not self.parts else 1e-5)
                if self.exact and (self.parts or self.in_place):
                    self._same(outputs(dense, call, _filler(case, self.own)), found, where)
        return len(cases) * len(self.calls)

    def gradients(self, emitted: ModuleType) -> tuple[int, set[str]]:
        """Which parameters get a gradient, once what trains has moved, where the emitted file says what trains.

        At one point a relu may hide some: up to TRIES points are tried before a parameter counts as never reached.
        The number of these, and what the base's own forward does not reach either: it may read it of longer inputs.
        """
        says: Any = emitted
        trains, planned, moved = set(says.trained_names()), set[str](), set[str]()
        for attempt in range(TRIES):
            own, owner = self._attached(emitted, CASES[0], neutral=False)
            present = {f"{self.path}.{name}": p for name, p in own.named_parameters()} | dict(owner.named_parameters())
            for name, parameter in present.items():
                parameter.requires_grad_(name in trains)
                if name in trains:
                    perturb(parameter, attempt)
            run(own, self.calls[attempt % len(self.calls)][1], _filler(CASES[0]), every=False)
            moved |= {name for name, p in present.items() if learns(p)}
            planned = self._planned(present)
            if moved >= planned:
                break
        idle = self._idle(planned - moved, trains)
        if moved != planned - idle:
            raise Defect(f"{self.body.name}: gradients of {sorted(moved ^ (planned - idle))} are not as planned")
        return attempt + 1, idle

    def _idle(self, names: Collection[str], trains: Collection[str]) -> set[str]:
        """Those of the base's parameters among these that its own forward gives no gradient, at as many points."""
        left = {name for n, _ in self.module.named_parameters() if (name := f"{self.path}.{n}") in names}
        for attempt in range(TRIES if left else 0):
            base = self._real(CASES[0])
            present = {f"{self.path}.{name}": p for name, p in base.named_parameters()}
            for name in present.keys() & trains:
                perturb(present[name], attempt)
            run(base, self.calls[attempt % len(self.calls)][1], _filler(CASES[0]))
            left = {name for name in left if not learns(present[name])}
        return left

    def _planned(self, present: Collection[str]) -> set[str]:
        """Of these parameters, all that the base does not have, and what the plan selects."""
        of_base = {f"{self.path}.{name}" for name, _ in self.module.named_parameters()}
        selected = {name for selection in self.program.plan.selections for name in selection.names}
        return {name for name in present if name in selected or name not in of_base}

    @property
    def own(self) -> str | None:
        """The attention that the base asks for: under it the calls were recorded."""
        return implementation(self.module)

    def _real(self, case: Case) -> nn.Module:
        """The base's module, on the same numbers in memory: nothing writes into them."""
        held: Any = {id(p): nn.Parameter(p.data, p.requires_grad) for p in self.module.parameters()}
        module = copy.deepcopy(self.module, held).to(case.dtype).train(case.training)
        config: Any = getattr(module, "config", None)
        if config is not None:
            config._attn_implementation = "eager" if case.eager else self.own
        return module

    def _as(self, emitted: ModuleType, case: Case) -> nn.Module:
        """The unit under a class that adds nothing."""
        module = self._real(case)
        module.__class__, _ = dict(_placed(emitted))[self.path]
        return module

    def _attached(self, emitted: ModuleType, case: Case, neutral: bool) -> tuple[nn.Module, nn.Module]:
        """The unit with its additions, and the owner of what it shares with others."""
        module: Any = self._as(emitted, case)
        owner = nn.Module()
        for shared in self._shared():
            call = neutral_shared(shared) if neutral else shared.module.call
            owner.add_module(shared.name, getattr(modules, call.name)(**dict(call.arguments)))
        says: Any = emitted
        moved = frozenset[str]() if neutral else frozenset(says.trained_names())
        inside = {name.removeprefix(f"{self.path}.") for name in moved}
        before, (_, number) = set(module._modules), dict(_placed(emitted))[self.path]
        module.attach(owner, number)
        for name in [n for n in module._modules if n not in before]:
            self._initialise(name, module.get_submodule(name), says, inside)
        self._initialise("", owner, says, moved)
        return module.to(case.dtype).train(case.training), owner.to(case.dtype)

    @torch.no_grad()
    def _initialise(self, addition: str, owner: nn.Module, emitted: Any, moved: Set[str]) -> None:
        """First values, drawn once for all cases and all units; zeros for what is `moved` off them anyway."""
        for path, module in owner.named_modules(prefix=addition):
            initial: Any = getattr(module, "initial", None)
            for name, parameter in module.named_parameters(recurse=False):
                key = f"{path}.{name}", parameter.shape
                if key[0] in moved:
                    parameter.zero_()
                    continue
                if key not in self.drawn:
                    self.drawn[key] = initial(name, emitted.Draw(*key)).to(parameter.dtype)
                parameter.copy_(self.drawn[key])

    def _shared(self) -> Iterator[PlacedShared]:
        for shared in self.program.shared:
            if any(member.path == self.path for member in shared.members):
                yield shared

    def _same(self, base: Any, own: Any, where: str, by: float = 0.0) -> None:
        tensors, others = list(tensors_in(base)), list(tensors_in(own))
        if len(tensors) != len(others):
            have = f"{len(others)} outputs and gradients, not {len(tensors)} as {self.body.unit.base.__name__}"
            raise Defect(f"{self.body.name} has {have}: {where}")
        for a, b in zip(tensors, others, strict=True):
            if (a.shape, a.dtype) != (b.shape, b.dtype):
                have = f"{_kind(b)}, not {_kind(a)} as {self.body.unit.base.__name__}"
                raise Defect(f"{self.body.name} gives {have}: {where}")
            # what is no number in both is equal
            if not torch.equal(a, b) and not torch.allclose(a, b, rtol=by, atol=by, equal_nan=True):
                off = (a.float() - b.float()).abs().max().item()
                raise Defect(f"{self.body.name} differs from {self.body.unit.base.__name__} by {off:.3g}: {where}")


def fused_parts(program: Program, *paths: str) -> frozenset[str]:
    """The nodes that hold a part of a fused projection which is changed in one of these units."""
    sites = [placement.site for placement in program.plan.placements if placement.path in paths]
    return frozenset(site.output for site in sites if isinstance(site, Projection) and site.rows)


def neutral_shared(shared: PlacedShared) -> Any:
    """The call that builds what is shared, without effect."""
    call = shared.module.call
    return shared.members[0].method.neutral(call)


def _placed(emitted: Any) -> Iterator[tuple[str, tuple[type[nn.Module], int | None]]]:
    """Every path, with its class and its number."""
    for pattern, unit in emitted.UNITS.items():
        yield from ((path, (unit, number)) for path, number in emitted.expand(pattern))


def _kind(tensor: torch.Tensor) -> str:
    return f"{tuple(tensor.shape)} of {tensor.dtype}"


def _filler(case: Case, own: str | None = None) -> Filler:
    return Filler(SEED, case.dtype, added=case.eager and own != "eager")
