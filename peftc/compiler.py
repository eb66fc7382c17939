"""From a spec to an artifact: the stages in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from torch import nn

from peftc.emit.artifact import Artifact, emit
from peftc.errors import PeftcError, Problem, raise_all
from peftc.plan import Plan, resolve
from peftc.report.budget import budget
from peftc.rewrite import rewrite
from peftc.runtime import attach as attach_artifact
from peftc.runtime import load
from peftc.runtime.attach import check_untouched
from peftc.runtime.proof import prove
from peftc.spec.load import load as load_spec
from peftc.spec.schema import Spec
from peftc.trace import trace_base, trace_model
from peftc.trace.model import read_config, unknown_keys

__all__ = ["attach", "compile", "load", "planned"]

M = TypeVar("M", bound=nn.Module)
Stage = Callable[[str], None]


def _silent(stage: str) -> None:
    """Says nothing about the stages."""


def compile(spec: Spec | str | Path, stage: Stage = _silent) -> Artifact:
    """The artifact of a spec; nothing is written.  `stage` hears what begins.

    Raises PeftcError with every complaint.
    """
    plan = planned(spec, stage)
    cost = budget(plan)
    stage("rewriting the units")
    program = rewrite(plan, plan.trace)
    stage("proving that the units are the base's")
    proof = prove(program)
    stage("printing the source")
    return emit(program, cost, proof)


def planned(spec: Spec | str | Path, stage: Stage = _silent) -> Plan:
    """Every method at every site of the base."""
    written = spec if isinstance(spec, Spec) else load_spec(spec)
    stage("tracing the base")
    try:
        raise_all(_unknown(written))
        trace = trace_base(written.base)
    except PeftcError as error:
        raise PeftcError(*(_placed(problem, written) for problem in error.problems)) from error
    stage("resolving the selectors")
    return resolve(written, trace)


def _placed(problem: Problem, spec: Spec) -> Problem:
    """A complaint about the base, at the spec's `base` where it has no place of its own."""
    return problem if problem.place else replace(problem, place=spec.origin.key("base"))


def _unknown(spec: Spec) -> Iterator[Problem]:
    """Keys of the written config that its class does not know: transformers would take them in silence."""
    read_config(spec.base)
    for key, near in unknown_keys(spec.base):
        hint = f"did you mean {near}?" if near else "remove it: it would have no effect"
        yield Problem(f"the base's config has no {key!r}", spec.origin.key("base", "config", key), hint)


def attach(model: M, spec: Spec | str | Path) -> M:
    """The same model, rewritten in place by executing what a compile of this very model would emit."""
    written = spec if isinstance(spec, Spec) else load_spec(spec)
    check_untouched(model)
    trace = trace_model(model)
    plan = resolve(written, trace)
    program = rewrite(plan, trace)
    return attach_artifact(model, emit(program, budget(plan), prove(program)))
