"""From a spec to an artifact: the stages in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import TypeAlias, TypeVar

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
from peftc.spec.load import written as given
from peftc.spec.schema import TASKS, Spec
from peftc.trace import trace_base, trace_model
from peftc.trace.record.autoclasses import model_types, offers
from peftc.trace.record.config_keys import dead_keys
from peftc.trace.record.model import auto_class, read_config

__all__ = ["attach", "compile", "load", "planned"]

M = TypeVar("M", bound=nn.Module)
Stage = Callable[[str], None]
Given: TypeAlias = Spec | Mapping[str, object] | str | Path


def _silent(stage: str) -> None:
    """Says nothing about the stages."""


def compile(spec: Given, stage: Stage = _silent) -> Artifact:
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


def planned(spec: Given, stage: Stage = _silent) -> Plan:
    """Every method at every site of the base."""
    written = given(spec)
    stage("tracing the base")
    try:
        raise_all(_unknown(written))
        trace = trace_base(written.base)
    except PeftcError as error:
        raise PeftcError(*(_placed(problem, written) for problem in error.problems)) from error
    stage("resolving the selectors")
    return resolve(written, trace)


def _placed(problem: Problem, spec: Spec) -> Problem:
    """A complaint about the base, at the spec's `model` or `config` where it has no place of its own."""
    if problem.place:
        return problem
    if spec.base.model is None:
        return replace(problem, place=spec.origin.key("base", "config"))
    hint = problem.hint or "a local folder with a config.json does as well; or write the config out, under config:"
    return replace(problem, place=spec.origin.place("base", "model"), hint=hint)


def _unknown(spec: Spec) -> Iterator[Problem]:
    """What is unknown in the base, of which transformers would say nothing, or list all that it knows."""
    folder, kind = spec.base.model, str((spec.base.config or {}).get("model_type", ""))
    if folder and folder.startswith((".", "/", "~")) and not Path(folder).is_dir():
        hint = "a folder holds a config.json; a hub id reads owner/name"
        yield Problem(f"there is no folder {folder!r}", spec.origin.place("base", "model"), hint)
        return
    if kind and kind not in model_types():
        near = get_close_matches(kind, model_types(), 1)
        hint = f"did you mean {near[0]!r}?" if near else "it is the model_type of the model's config.json"
        place = spec.origin.place("base", "config", "model_type")
        yield Problem(f"transformers has no model type {kind!r}", place, hint)
        return
    config = read_config(spec.base)
    for key, meant in dead_keys(spec.base):
        hint = f"did you mean {meant}? if not, remove it" if meant else "remove it"
        said = f"{kind} has no {key!r}, and none of its code asks for it"
        yield Problem(said, spec.origin.key("base", "config", key), hint)
    yield from _untasked(spec, config.model_type)


def _untasked(spec: Spec, kind: str) -> Iterator[Problem]:
    """The complaint about a task that transformers has no class for, where it knows this type of model."""
    task = spec.base.task
    if task is None or kind not in model_types() or offers(auto_class(task), kind):
        return
    tasks = ", ".join(other for other in TASKS if offers(auto_class(other), kind))
    hint = f"its tasks are {tasks}" if tasks else "leave the task out"
    yield Problem(f"{kind} has no model for the task {task!r}", spec.origin.place("base", "task"), hint)


def attach(model: M, spec: Given) -> M:
    """The same model, rewritten in place by executing what a compile of this very model would emit."""
    written = given(spec)
    check_untouched(model)
    trace = trace_model(model)
    plan = resolve(written, trace)
    program = rewrite(plan, trace)
    return attach_artifact(model, emit(program, budget(plan), prove(program)))
