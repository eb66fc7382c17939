"""What each method must show on a model: it attaches, keeps its laws, and the emitted source is the attached model."""

from __future__ import annotations

import copy
import math
import re
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import fx
from transformers import PreTrainedModel

import peftc
from peftc.emit.artifact import Artifact, emit
from peftc.errors import PeftcError
from peftc.graph.sites import Projection, Sublayer, Trace
from peftc.methods import METHODS
from peftc.plan import Placement, Plan, resolve
from peftc.report.budget import budget
from peftc.rewrite import rewrite
from peftc.runtime import attach
from peftc.runtime.proof import Proof, prove
from peftc.spec.load import load
from peftc.spec.schema import Spec
from peftc.trace import trace_model
from tests.sweep.agreement import ahead, otherwise_by_products
from tests.sweep.inputs import Inputs, answer, generated, inputs_of
from tests.sweep.registry import Type
from tests.sweep.training import cacheless, trainable, unlearnt

ENTRIES: Mapping[str, str] = {
    "lora": "  - {method: lora, at: [q, v], rank: 2, alpha: 4}\n",
    "adapter": "  - {method: adapter, bottleneck: 4, activation: tanh}\n",
    "prefix": "  - {method: prefix, length: 3}\n",
    "ia3": "  - {method: ia3}\n",
    "bitfit": "  - {method: bitfit}\n",
}
CLOSE = 2e-4
NEAR, ROUNDING = 1e-3, 1e-4  # scores of generation
Generated = tuple[torch.Tensor, torch.Tensor]


class Broken(Exception):
    """A law that does not hold."""


class Unshown(Exception):
    """Why no law can be shown: what trains lies where the inputs do not come, as without a picture."""


@dataclass(frozen=True)
class Outcome:
    """`ok`, `none` (the model has no place for it) or `fails`; the reason, and where in peftc it came up."""

    state: str
    reason: str = ""
    place: str = ""


def outcomes(kind: Type, model: PreTrainedModel) -> dict[str, Outcome]:
    """One outcome for each method alone, for all together, and for the emitted files of all together.

    The proof runs on all together; where that fails, on each method alone too.
    """
    inputs = inputs_of(model, kind)
    made: list[Trace] = []
    failure = tried(lambda: made.append(trace_model(model)))
    if failure.state != "ok":
        return dict.fromkeys((*ENTRIES, "all", "load"), failure)
    trace = made[0]
    before = {name: tried(lambda name=name: resolve(spec_of((name,), "base", kind.task), trace)) for name in ENTRIES}  # type: ignore[misc]
    together = tuple(name for name, outcome in before.items() if outcome.state == "ok")
    if not together:
        return {**before, **dict.fromkeys(("all", "load"), Outcome("none", "no method has a place"))}
    whole = tried(lambda: keeps(kind, model, trace, together, inputs, proved=True))
    found = {
        name: tried(lambda name=name: keeps(kind, model, trace, (name,), inputs, proved=whole.state != "ok"))  # type: ignore[misc]
        for name in together
    }
    loaded = tried(lambda: loads(kind, model, trace, together, inputs)) if whole.state == "ok" else whole
    return {**before, **found, "all": whole, "load": loaded}


def tried(check: Callable[[], object]) -> Outcome:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check()
    except PeftcError as error:
        said = "; ".join(p.message + (f" ({p.hint})" if "not traced" in (p.hint or "") else "") for p in error.problems)
        return Outcome("none" if _absent(error) else "fails", f"PeftcError: {said}"[:400], _place(error))
    except Unshown as reason:
        return Outcome("none", str(reason))
    except Exception as error:
        return Outcome("fails", f"{type(error).__name__}: {' '.join(str(error).split())}"[:400], _place(error))
    return Outcome("ok")


def _absent(error: PeftcError) -> bool:
    """Whether the model has no such site at all, or no bias: the method has no place there.

    A site that is missing for want of a trace is a failure.
    """
    said = re.compile(r"has no site|no layer has|finds nothing to train|has no layers")
    return all(said.search(p.message) and "not traced" not in (p.hint or "") for p in error.problems)


def _place(error: BaseException) -> str:
    """The innermost line of peftc, and below it the innermost of anything."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "/peftc/" in f.filename]
    last = [f"{Path(f.filename).parent.name}/{Path(f.filename).name}:{f.name}" for f in (own[-1:] or frames[-1:])]
    inner = frames[-1] if frames and own and frames[-1] is not own[-1] else None
    return "".join(last) + (f" < {Path(inner.filename).name}:{inner.lineno}:{inner.name}" if inner else "")


def spec_of(methods: tuple[str, ...], base: str, task: str | None) -> Spec:
    """The spec of these methods on a base folder."""
    task_line = f"  task: {task}\n" if task else ""
    text = f"name: sweep\nbase:\n  model: {base}\n{task_line}seed: 1\nmethods:\n" + "".join(map(ENTRIES.get, methods))  # type: ignore[arg-type]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "sweep.yaml"
        path.write_text(text)
        return load(path)


def keeps(
    kind: Type, model: PreTrainedModel, trace: Trace, methods: tuple[str, ...], inputs: Inputs, *, proved: bool
) -> None:
    """Attach to a copy; Broken where a law does not hold."""
    plan = resolve(spec_of(methods, "base", kind.task), trace)
    attached = attach(copy.deepcopy(model), emitted(plan, trace, proved=proved))
    before = answer(model, inputs)
    if all(m.identity_at_init for m in METHODS if m.model_fields["method"].default in methods):
        same(answer(attached, inputs), before, "at initialisation it is not the base")
    _counted(attached, plan)
    _moved(attached)
    if torch.allclose(answer(attached, inputs), before, atol=1e-6):
        raise _without_effect(model, plan, inputs)
    _gradients(attached, model, plan, inputs)
    if proved and (why := otherwise_by_products(attached, model, inputs) or ahead(model, trace)):
        raise Broken(why)
    if kind.kind in ("decoder", "encoder-decoder"):
        _cached(attached, model, inputs)
    if why := unlearnt(attached, model, inputs):
        raise Broken(why)


def emitted(plan: Plan, trace: Trace, *, proved: bool) -> Artifact:
    """What a compile emits, on a trace that is there already."""
    program = rewrite(plan, trace)
    return emit(program, budget(plan), prove(program) if proved else Proof((), 0))


def same(one: torch.Tensor, other: torch.Tensor, law: str) -> None:
    if one.shape != other.shape:
        raise Broken(f"{law}: shapes {tuple(one.shape)} and {tuple(other.shape)}")
    difference = (one - other).abs().max().item() / max(1.0, other.abs().max().item())
    if not difference <= CLOSE:
        raise Broken(f"{law}: it differs by {difference:.1e}")


def _counted(model: PreTrainedModel, plan: Plan) -> None:
    counted, formula = sum(p.numel() for p in trainable(model).values()), budget(plan).total.trained
    if counted != formula:
        raise Broken(f"{counted} parameters train, the formula says {formula}")


def _moved(model: PreTrainedModel) -> None:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in trainable(model).values():
            p.add_(torch.randn(p.shape, generator=generator).to(p.dtype) * 0.2)


def _gradients(model: PreTrainedModel, base: PreTrainedModel, plan: Plan, inputs: Inputs) -> None:
    """Every addition has a gradient that is not zero, in every layer that it was placed in.

    Where none of the base's own parameters has one, as behind what a head reads, an addition can have none either.
    """
    _backward(model, inputs)
    added = {f"{p.path}.{p.name}.": _beside(p, base) for p in plan.placements}
    dead = {
        n: beside for n, p in trainable(model).items() if _dead(p) for a, beside in added.items() if n.startswith(a)
    }
    if dead:
        live = _live(base, inputs)
        dead = {n: beside for n, beside in dead.items() if any(other.startswith(f"{beside}.") for other in live)}
    if dead:
        raise Broken(f"no gradient: {_few(list(dead))}")
    selected = [s for s in plan.selections if all(_dead(trainable(model)[n]) for n in s.names)]
    if selected and not _live(base, inputs).isdisjoint(selected[0].names):
        raise Broken(f"no gradient in anything that {selected[0].method} trains")


def _without_effect(base: PreTrainedModel, plan: Plan, inputs: Inputs) -> Exception:
    live = _live(base, inputs)
    beside = tuple(f"{_beside(p, base)}." for p in plan.placements)
    selected = {name for s in plan.selections for name in s.names}
    if any(name in selected or name.startswith(beside) for name in live):
        return Broken("after its parameters moved, it has no effect")
    return Unshown("the inputs of the sweep do not reach what it trains")


def _backward(model: PreTrainedModel, inputs: Inputs) -> None:
    model.zero_grad()
    out = answer(model, cacheless(model, inputs), grad=True)
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(3))).sum().backward()


def _beside(placement: Placement, model: torch.nn.Module) -> str:
    """The base's own module that an addition stands beside: a projection, or the last one behind a sublayer."""
    site, within = placement.site, ""
    if isinstance(site, Projection):
        within = site.module
    if isinstance(site, Sublayer):
        within = _maker(placement.unit.graph, site.output, model.get_submodule(placement.path))
    return ".".join(filter(None, (placement.path, within)))


def _maker(graph: fx.Graph, name: str, unit: torch.nn.Module) -> str:
    """The last module with parameters on the one way that leads to a node; "" where there are several ways."""
    node = next(n for n in graph.nodes if n.name == name)
    while not (node.op == "call_module" and any(True for _ in unit.get_submodule(str(node.target)).parameters())):
        if len(node.all_input_nodes) != 1:
            return ""
        node = node.all_input_nodes[0]
    return str(node.target)


def _live(base: PreTrainedModel, inputs: Inputs) -> set[str]:
    """Which parameters of the base have a gradient."""
    own = copy.deepcopy(base).requires_grad_(True)
    _backward(own, inputs)
    return {name for name, parameter in own.named_parameters() if not _dead(parameter)}


def _dead(parameter: torch.nn.Parameter) -> bool:
    return parameter.grad is None or not bool(parameter.grad.abs().max() > 0)


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _cached(model: PreTrainedModel, base: PreTrainedModel, inputs: Inputs) -> None:
    """Greedy generation with and without a cache, where the base's own is equal.

    Where the base's scores agree but for more than rounding, as where it clamps a number without a cache only, they
    are its own to differ in: the tokens are the same.
    """
    plain = generated(base, inputs, cache=False)
    if plain is None:
        return
    kept = generated(base, inputs, cache=True)
    if kept is None or not _equal(kept, plain, NEAR):
        return
    one, other = generated(model, inputs, cache=True), generated(model, inputs, cache=False)
    if one is None or other is None:
        raise Broken("the base generates, the attached model does not")
    if not _equal(one, other, NEAR if _equal(kept, plain, ROUNDING) else math.inf):
        raise Broken("cached generation differs from uncached")


def _equal(one: Generated, other: Generated, by: float) -> bool:
    """The same tokens, and scores of the same steps that agree."""
    return torch.equal(one[0], other[0]) and bool(((one[1] - other[1]).abs() <= by * (1 + other[1].abs())).all())


def loads(kind: Type, model: PreTrainedModel, trace: Trace, methods: tuple[str, ...], inputs: Inputs) -> None:
    """The emitted files, written and loaded on the saved base, are the attached model."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        model.save_pretrained(folder / "base")
        plan = resolve(spec_of(methods, str(folder / "base"), kind.task), trace)
        artifact = emitted(plan, trace, proved=False)
        artifact.write(folder)
        loaded: Any = peftc.load(folder / "sweep", base=folder / "base")
        attached = attach(type(model).from_pretrained(folder / "base"), artifact)
        same(answer(loaded.eval(), inputs), answer(attached.eval(), inputs), "loaded, it is not what is attached")
