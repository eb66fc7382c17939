"""Linear maps and embeddings that are no site of another unit: units of their own, whose forward calls their base's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import fx, nn
from transformers import PreTrainedModel

from peftc.graph.sites import Embedding, Layer, Projection, Site, Unit, around, within
from peftc.trace.record.causal import LooksBack
from peftc.trace.record.leaf_calls import Called, called
from peftc.trace.record.nested import tensors_in
from peftc.trace.record.observed import Call, Observed
from peftc.trace.roles.linear_maps import is_transposed
from peftc.trace.roles.standalone import NODE, alone, looking_up, with_graph
from peftc.trace.roles.views import axes

Instances = tuple[tuple[str, Unit], ...]
Single = Projection | Embedding
UNCALLED = "its forward is never called"


def singles(
    model: nn.Module, layers: Sequence[Layer], observed: Observed, looks_back: LooksBack
) -> tuple[Instances, Mapping[str, str]]:
    """The units outside every layer, then those inside; path -> why, of the modules that cannot be changed.

    Outside the layers an embedding is a place even where something else reads its weight, as a tied head does; so is
    a module that no example reaches, as the projection of pictures in a model that was given none; but no embedding
    in place of which others are called that have its weight.
    """
    owners = {name: around(layers, name) for name in _alone(model, layers)}
    modules = {name: model.get_submodule(name) for name in owners}
    bound = [name for name, module in modules.items() if owners[name] or not isinstance(module, nn.Embedding)]
    seen = called(model, observed) if bound else Called({}, {}, {})
    like = {name: observed.twins.get(module, module) for name, module in modules.items()}
    turned = {m: is_transposed(m, seen.calls[m][0]) for m in dict.fromkeys(like.values()) if m in seen.calls}
    ran = {*seen.calls, *seen.readers} - seen.failed.keys()
    checked = [name for name in bound if owners[name] or like[name] in ran]
    fixed = {name: why for name in checked if (why := _why(seen, like[name], turned))}
    looked_up = {n: m for n, m in modules.items() if isinstance(m, nn.Embedding) and observed.calls(m)}
    tables, fixed = _tables(model, looked_up), fixed | _instead(modules, looked_up)
    forwards = {m: looking_up(m, calls) for m, calls in _own_forwards(like.values(), observed)}
    graphs = {name: forwards[module] for name, module in like.items() if module in forwards}
    fixed |= {name: _no_map(modules[name]) for name, graph in graphs.items() if graph is None}
    groups: dict[tuple[type[nn.Module], Single, fx.Graph | None], list[str]] = {}
    outside = []
    for name, layer in ((name, layer) for name, layer in owners.items() if name not in fixed):
        own = "embedding" if name in tables else name if layer is None else _name_in(layer, name)
        says = [site.causal for site in _sites(layer, layers)] if layer else []
        site = _site(modules[name], own, turned.get(like[name]), observed)
        if isinstance(site, Projection):
            site = replace(site, causal=any(says) if says else looks_back(name))
        if layer is None:
            outside.append((name, _unit(model, [name], site, graphs.get(name))))
        else:
            groups.setdefault((type(modules[name]), site, graphs.get(name)), []).append(name)
    units = [_unit(model, names, site, graph) for (_, site, graph), names in groups.items()]
    return (*outside, *((path, unit) for unit in units for path in unit.paths)), fixed


def _unit(model: nn.Module, names: Sequence[str], site: Single, graph: fx.Graph | None) -> Unit:
    unit = alone(model, names, site)
    return unit if graph is None else with_graph(unit, graph)


def _own_forwards(modules: Iterable[nn.Module], observed: Observed) -> Iterator[tuple[nn.Module, list[Call]]]:
    """The embeddings whose class has a forward of its own, as one that scales the rows, with their calls."""
    for module in dict.fromkeys(modules):
        own = isinstance(module, nn.Embedding) and type(module).forward is not nn.Embedding.forward
        if own and (calls := observed.calls(module)):
            yield module, calls


def _alone(model: nn.Module, layers: Sequence[Layer]) -> list[str]:
    """The childless modules with a matrix that no unit has a site for."""
    units = [pair for layer in layers for pair in layer.units]
    sites = [(path, site) for path, unit in units for site in unit.sites if isinstance(site, Projection | Embedding)]
    taken = {*(path for path, _ in units), *(f"{path}.{site.module}" for path, site in sites)}
    return [name for name, module in model.named_modules() if name and name not in taken and _has_matrix(module)]


def _has_matrix(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return not any(True for _ in module.children()) and isinstance(weight, nn.Parameter) and weight.dim() == 2


def _tables(model: nn.Module, ran: Mapping[str, nn.Embedding]) -> set[str]:
    """The input embeddings: of those that ran, all that have their weight; without any, the model's own word."""
    own = _input_embeddings(model)
    weight = getattr(own, "weight", None)
    tied = {name for name, module in ran.items() if module.weight is weight}
    return tied or {name for name, module in model.named_modules() if module is own}


def _instead(modules: Mapping[str, nn.Module], ran: Mapping[str, nn.Embedding]) -> dict[str, str]:
    """Path -> why, of the embeddings that did not run, though others did that have their weight."""
    idle = {n: m for n, m in modules.items() if isinstance(m, nn.Embedding) and n not in ran}
    tied = {n: [other for other, module in ran.items() if module.weight is m.weight] for n, m in idle.items()}
    return {n: f"{UNCALLED}, that of {' and '.join(o)} is, with its weight" for n, o in tied.items() if o}


def _site(module: nn.Module, name: str, turned: bool | None, observed: Observed) -> Single:
    """The site of a module; where no run shows how its matrix stands, its class says it."""
    rows, columns = module.get_parameter("weight").shape
    if isinstance(module, nn.Embedding):
        return Embedding(name, "", NODE, rows, columns)
    transposed = not isinstance(module, nn.Linear) if turned is None else turned
    inputs, outputs = (rows, columns) if transposed else (columns, rows)
    bias, (flat, other) = getattr(module, "bias", None) is not None, _axes(observed.calls(module))
    return Projection(name, "", NODE, NODE, inputs, outputs, bias=bias, flat=flat, turned=other)


def _axes(calls: Sequence[Call]) -> tuple[bool, bool]:
    """Whether a call lacks one axis for the batch and one for the length, or none shows them; whether one is turned."""
    seen = [axes([next(tensors_in(list(recorded.named.values())), None) for recorded in call]) for call in calls]
    return not seen or any(flat for flat, _ in seen), any(turned for _, turned in seen)


def _input_embeddings(model: nn.Module) -> nn.Module | None:
    """The model's own answer; a model that is no library's may have none."""
    try:
        return model.get_input_embeddings() if isinstance(model, PreTrainedModel) else None
    except NotImplementedError:
        return None


def _name_in(layer: Layer, name: str) -> str:
    """A module's name inside its layer; the module's last name where it is one of the layer's paths itself."""
    path = next(path for path in layer.paths if within(name, path))
    return name.removeprefix(path).removeprefix(".") or name.rpartition(".")[2]


def _sites(layer: Layer, layers: Sequence[Layer]) -> list[Site]:
    """Those of a layer's tower."""
    units = (unit for other in layers if other.tower == layer.tower for _, unit in other.units)
    return [site for unit in units for site in unit.sites]


def _why(seen: Called, module: nn.Module, turned: Mapping[nn.Module, bool | None]) -> str | None:
    """Why what is added to a module's output is no change of what its matrix does, or None."""
    if module in seen.failed:
        return f"its model does not run on example inputs: {seen.failed[module]}"
    if module in seen.readers:
        return f"{seen.readers[module]} reads its weight itself, and may do without its forward"
    if module not in seen.calls:
        return UNCALLED
    maps = _maps(module, *seen.calls[module], turned[module])
    return None if maps else _no_map(module)


def _no_map(module: nn.Module) -> str:
    return f"{type(module).__name__} is no linear map and no embedding"


def _maps(module: nn.Module, source: torch.Tensor, result: object, turned: bool | None) -> bool:
    """Whether a result is a linear map of each vector of its source, or a row of the matrix for each index."""
    if not isinstance(result, torch.Tensor):
        return False
    if isinstance(module, nn.Embedding):
        return result.shape == (*source.shape, module.get_parameter("weight").shape[1])
    return turned is not None and source.shape[:-1] == result.shape[:-1]
