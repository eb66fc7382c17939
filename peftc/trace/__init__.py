"""A base as units, layers and sites; the only package that knows transformers' internals."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import TYPE_CHECKING

from torch import nn
from transformers import PreTrainedModel

from peftc.errors import PeftcError
from peftc.graph.sites import Parameter, Trace, dotted
from peftc.trace.record.causal import Loaded, looking_back
from peftc.trace.record.gradient_reach import reached, reaches, unreached
from peftc.trace.record.model import UNBUILT, build, shallow, skeleton, smaller
from peftc.trace.record.observed import observe
from peftc.trace.record.state import unchanged
from peftc.trace.roles.layers import layers
from peftc.trace.roles.normalising import is_norm
from peftc.trace.roles.norms import gains
from peftc.trace.roles.singles import singles
from peftc.trace.roles.views import View, biases
from peftc.trace.tracer.patches import installed
from peftc.trace.tracer.values import TraceFailure

if TYPE_CHECKING:
    from peftc.spec.schema import Base


def trace_base(base: Base) -> Trace:
    """The base of a spec, built from its config on the meta device, traced."""
    return _drawn(build(base))


def trace_model(model: nn.Module) -> Trace:
    """A loaded model, traced on a copy that has no weights."""
    return _trace(skeleton(model), model.get_submodule)


def trace_smaller(model: PreTrainedModel, sizes: Mapping[str, int]) -> Trace:
    """A model of the same class with some integers of its config replaced; PeftcError where it does not run so."""
    try:
        return _drawn(smaller(model, sizes))
    except UNBUILT as error:
        raise PeftcError(f"{type(model).__name__} does not run at other sizes: {error}") from error


def _drawn(model: PreTrainedModel) -> Trace:
    """A model without weights; where its code does not say what it sees, one of the same kind is asked."""
    return _trace(model, lambda root: shallow(model.get_submodule(root)))


def _trace(model: nn.Module, loaded: Loaded) -> Trace:
    with unchanged(model):
        return _found(model, loaded)


def _found(model: nn.Module, loaded: Loaded) -> Trace:
    try:
        observed = observe(model)
        looks_back = looking_back(model, observed, loaded)
        with installed() as session:
            found, untraced = layers(model, observed, session, looks_back)
    except TraceFailure as failure:
        raise PeftcError(f"{type(model).__name__} cannot be traced: {failure}") from failure
    carrying = reached(model, observed.submodels)
    idle = unreached(model, found, carrying)
    found, untraced = tuple(layer for layer in found if layer.path not in idle), {**untraced, **idle}
    unread = tuple(layer.path for layer in found if not reaches(model, layer, carrying))
    units = tuple(dict.fromkeys(unit for layer in found for _, unit in layer.units))
    names = tuple(name for name, _ in model.named_modules() if name)
    others, fixed = singles(model, found, observed, looks_back)
    views = {unit: View.of(model.get_submodule(unit.paths[0]), unit.graph, lambda: False) for unit in units}
    normed, biased = (
        {dotted(path, name) for unit, view in views.items() for name in told(view) for path in unit.paths}
        for told in (gains, biases)
    )
    known = parameters(model, carrying, normed, biased)
    return Trace(
        model, units, found, others, known, names, untraced, fixed, observed.submodels, observed.unfed, unread,
        refused={str(scenario): how for scenario, how in observed.refused.items()},
    )  # fmt: skip


def parameters(
    model: nn.Module, carrying: Set[nn.Parameter], normed: Set[str], biased: Set[str]
) -> Mapping[str, Parameter]:
    """Every parameter once, under its first name, with what it is to the selective methods.

    `carrying` are those that a gradient reaches; `normed` those of norms that are no modules, `biased` what a unit adds
    behind a matrix, whatever they are called.
    """
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    prefix = getattr(model, "base_model_prefix", "")
    body = f"{prefix}." if prefix and getattr(model, prefix, model) is not model else ""
    found, reaching = {}, set(map(id, carrying))
    for key, same in names.items():
        first = next((n for n in same if n.startswith(body)), same[0])
        owner, _, leaf = first.rpartition(".")
        norm = is_norm(model.get_submodule(owner)) or not normed.isdisjoint(same)
        shape = tuple(model.get_parameter(first).shape)
        bias = key in reaching and (leaf.endswith("bias") or not biased.isdisjoint(same))
        found[first] = Parameter(first, shape, bias, norm, not first.startswith(body), tuple(same))
    return found
