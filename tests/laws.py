"""What every method is held to: sample entries of each, and tiny models with them attached."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, get_args, get_origin

import torch
from pydantic import BaseModel

from peftc.emit.artifact import Artifact, emit
from peftc.graph.sites import Layer, Trace
from peftc.methods import METHODS
from peftc.methods.additive import Additive
from peftc.methods.base import Method
from peftc.methods.gate import Gate, Kind
from peftc.methods.selective import Selective
from peftc.plan import resolve
from peftc.report.budget import budget
from peftc.rewrite import rewrite
from peftc.rewrite.program import Program
from peftc.runtime import attach
from peftc.runtime.proof import Proof
from peftc.spec.load import loads
from peftc.spec.presets import PRESETS
from peftc.spec.schema import Spec
from peftc.trace import trace_model
from tests.zoo import ZOO, Tiny, fresh

Entry = dict[str, Any]
REQUIRED: dict[str, Entry] = {}  # method -> the settings without which its entry is none; so far every one has defaults
CHOICES = 3


@dataclass(frozen=True)
class Case:
    """A tiny model, and a sample of what can be attached to it."""

    tiny: Tiny
    name: str

    def __str__(self) -> str:
        return f"{self.tiny.name}, {self.name}"

    @property
    def entries(self) -> list[Entry]:
        return samples(self.tiny)[self.name]

    def program(self) -> Program:
        return compiled(self.tiny, self.name)[0]

    def artifact(self) -> Artifact:
        return compiled(self.tiny, self.name)[1]

    def attached(self) -> Any:
        """A fresh model with the sample attached."""
        return copy.deepcopy(_attached(self.tiny, self.name))

    @property
    def identity(self) -> bool:
        return all(method.identity_at_init for method in self.program().plan.spec.methods)


def word(method: type[Method]) -> str:
    """The word that a spec uses for a method."""
    return str(method.model_fields["method"].default)


def entry(method: type[Method], **settings: Any) -> Entry:
    return {"method": word(method), **REQUIRED.get(word(method), {}), **settings}


def spec(entries: list[Entry], tiny: Tiny = ZOO[0], **more: Any) -> Spec:
    """A spec as its YAML would give it, presets expanded."""
    base = {"config": tiny.config(), **({"task": tiny.task} if tiny.task else {})}
    return loads(json.dumps({"name": "laws", "base": base, "methods": entries, **more}))


def emitted(written: Spec, trace: Trace) -> tuple[Program, Artifact]:
    """What a compile makes of a spec, its proof left out."""
    plan = resolve(written, trace)
    program = rewrite(plan, trace)
    return program, emit(program, budget(plan), Proof((), 0))


@cache
def trace(tiny: Tiny) -> Trace:
    return trace_model(fresh(tiny))


@cache
def compiled(tiny: Tiny, name: str) -> tuple[Program, Artifact]:
    return emitted(spec(samples(tiny)[name], tiny), trace(tiny))


@cache
def _attached(tiny: Tiny, name: str) -> Any:
    return attach(fresh(tiny), compiled(tiny, name)[1])


# -- samples ---------------------------------------------------------------------------------------------------------


@cache
def samples(tiny: Tiny) -> dict[str, list[Entry]]:
    """Name -> entries: each method with each of its choices, at every site, under every gate; presets; all at once."""
    found = dict(_alone(tiny))
    everything = [entry(method, **quiet(method, tiny)) for method in METHODS if offered(method, tiny)]
    found["everything"] = everything
    quiet_ones = [made for made in everything if _made(made).identity_at_init]
    found["every identity"] = quiet_ones
    found["by layer"] = list(_by_layer(tiny))
    found["nothing gated"] = [entry(method) for method in METHODS if offered(method, tiny)]
    if not tiny.causal:
        central = {"gate": {"kind": "central", "shared": "g"}}
        found["central"] = [{"method": "lora", **central}, {"method": "prefix", "length": 3, **central}]
    found |= {preset: [_preset(preset, tiny)] for preset in PRESETS if _presentable(preset, tiny)}
    return found


def offered(method: type[Method], tiny: Tiny) -> bool:
    """Whether the base has something that a method can take or train."""
    made, layer = _made(entry(method)), first_layer(tiny)
    if isinstance(made, Selective):
        return bool(made.trains(trace(tiny).parameters))
    return all(layer.find(site) for site in made.default_sites())


def first_layer(tiny: Tiny) -> Layer:
    return trace(tiny).layers[0]


def _made(written: Entry) -> Method:
    return spec([written]).methods[0]


def _alone(tiny: Tiny) -> Iterator[tuple[str, list[Entry]]]:
    for method in METHODS:
        if not offered(method, tiny):
            continue
        variants = {"": entry(method), **dict(_choices(method))}
        for label, written in variants.items():
            yield f"{word(method)}{label}", [written]
        if sites := everywhere(method, tiny):
            yield f"{word(method)} everywhere", [entry(method, at=sites)]
        for kind in gates(method, tiny):
            yield f"{word(method)} gated ({kind})", [entry(method, gate=kind)]


def _choices(method: type[Method]) -> Iterator[tuple[str, Entry]]:
    """An entry for each other choice of a setting of the method's own, and for each group of settings left out."""
    own = {name: f for name, f in method.model_fields.items() if name not in Method.model_fields}
    for name, field in own.items():
        arguments = get_args(field.annotation)
        if get_origin(field.annotation) is not None and any(isinstance(a, str) for a in arguments):
            others = [choice for choice in arguments if choice != field.default]
            yield from ((f" {name}={choice}", entry(method, **{name: choice})) for choice in others[:CHOICES])
        if any(isinstance(a, type) and issubclass(a, BaseModel) for a in arguments):
            yield f" {name}", entry(method, **{name: {}})


def everywhere(method: type[Method], tiny: Tiny) -> list[str]:
    """Every site of a layer that the method does not refuse."""
    made, layer = _made(entry(method)), first_layer(tiny)
    places = {name: layer.find(name) for name in layer.site_names()}
    return [name for name, place in places.items() if place and made.refusal(place[2]) is None]


def gates(method: type[Method], tiny: Tiny) -> list[Kind]:
    """The kinds of gate that the method may have here alone."""
    made = _made(entry(method))
    if not isinstance(made, Additive):
        return []
    sites = [place[2] for name in made.default_sites() if (place := first_layer(tiny).find(name))]
    kinds = [kind for kind in get_args(Kind) if kind != "central"] if sites else []
    return [kind for kind in kinds if not any(made.gate_refusal(Gate(kind=kind), site) for site in sites)]


def quiet(method: type[Method], tiny: Tiny) -> Entry:
    """The gate that a causal unit may have too: per token, or else a constant; none where nothing can be gated."""
    kinds = [kind for kind in ("token", "constant") if kind in gates(method, tiny)]
    return {"gate": kinds[0]} if kinds else {}


def _by_layer(tiny: Tiny) -> Iterator[Entry]:
    """Different settings on different layers, and a second entry on a site that is taken."""
    yield from ({"method": "lora", "rank": rank, "layers": layers} for rank, layers in ((2, "0"), (5, "1-")))
    yield {"method": "lora", "at": "v", "rank": 3, "layers": "1", "again": True, "gate": "token"}
    yield {"method": "adapter", "variant": "houlsby", "bottleneck": 3, "layers": "0"}
    yield {"method": "adapter", "variant": "parallel", "bottleneck": 5, "layers": "last 1", "gate": "constant"}
    yield {"method": "prefix", "length": 2, "layers": "0", "reparametrize": {"hidden": 6}}
    yield {"method": "prefix", "length": 4, "layers": "1-", "gate": "constant"}
    yield {"method": "ia3", "at": ["q", "o"], "layers": "even"}
    yield {"method": "norm", "layers": "odd"}


def _preset(name: str, tiny: Tiny) -> Entry:
    """A preset; in a causal model with the gates that it may have there."""
    parts = {word(m): m for part in PRESETS[name] for m in METHODS if word(m) == part["method"]}
    gated = {str(part["method"]) for part in PRESETS[name] if "gate" in part}
    overrides = {method: quiet(parts[method], tiny) for method in parts if tiny.causal and method in gated}
    return {"preset": name, **overrides}


def _presentable(name: str, tiny: Tiny) -> bool:
    needed = {str(part["method"]) for part in PRESETS[name]}
    return all(offered(method, tiny) for method in METHODS if word(method) in needed)


# -- what the laws ask of a model --------------------------------------------------------------------------------------


def answer(model: Any, inputs: dict[str, Any], seed: int = 3) -> torch.Tensor:
    """The first output, dropout seeded."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        found: torch.Tensor = model(**inputs)[0]
    return found


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Bit for bit."""
    return one.dtype == other.dtype and torch.equal(one, other)


def trains(model: Any) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def move(tensors: Iterator[torch.Tensor], by: float = 0.1, seed: int = 11) -> None:
    """Add seeded noise in place."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in tensors:
        tensor.add_((by * torch.randn(tensor.shape, generator=generator)).to(tensor.dtype))


def additions(model: Any) -> Iterator[torch.Tensor]:
    """The parameters of what was added."""
    return (p for path in model.added for p in model.get_submodule(path).parameters())


def perturbed(model: Any) -> Any:
    """The model with its additions no longer as they started."""
    move(additions(model))
    return model
