"""Which modules of a model are its layers: repeated blocks, some of which at least attend, tower by tower."""

from __future__ import annotations

from torch import nn

from peftc.trace.observed import Observed


def layer_paths(model: nn.Module, observed: Observed) -> list[list[str]]:
    """The repeated blocks, one list per tower: elements of the outermost lists of blocks around what attends."""
    towers: dict[str, list[list[str]]] = {}
    for path in observed.attending(model):
        if around := _elements(model, path):
            towers.setdefault(around[0].rpartition(".")[0], []).append(around)
    found = [_with_others(model, observed, _blocks(model, chains)) for chains in towers.values()]
    return found or _repeated(model, observed)


def beside(model: nn.Module, path: str) -> list[str]:
    """What stands at the same place as an element of a list, in other lists that are as long."""
    owner, _, index = path.rpartition(".")
    parent, own = owner.rpartition(".")[0], model.get_submodule(owner)
    lists = [(n, m) for n, m in model.get_submodule(parent).named_children() if isinstance(m, nn.ModuleList)]
    count = next((len(m) for _, m in lists if m is own), None)
    like = [".".join(filter(None, (parent, n, index))) for n, m in lists if m is not own and len(m) == count]
    return [other for other in like if any(True for _ in model.get_submodule(other).children())]


def _elements(model: nn.Module, path: str) -> list[str]:
    """The elements of lists of modules that a path runs through, the outermost first."""
    parts = path.split(".")
    parents = ((".".join(parts[:end]), ".".join(parts[: end + 1])) for end in range(len(parts)))
    return [element for parent, element in parents if isinstance(model.get_submodule(parent), nn.ModuleList)]


def _blocks(model: nn.Module, chains: list[list[str]]) -> list[str]:
    """One element of each chain: the outermost that is no stage, which only holds a list of blocks."""
    level = 0
    while _are_stages(model, [chain[level:] for chain in chains]):
        level += 1
    return list(dict.fromkeys(chain[min(level, len(chain) - 1)] for chain in chains))


def _are_stages(model: nn.Module, chains: list[list[str]]) -> bool:
    """Whether first elements are lists themselves, or the lists inside them repeat one class."""
    inner = {chain[1].rpartition(".")[0]: chain[0] for chain in chains if len(chain) > 1}
    lists = [list(model.get_submodule(path).children()) for path in inner]
    alike = all(len({type(module) for module in modules}) == 1 for modules in lists)
    listed = any(isinstance(model.get_submodule(first), nn.ModuleList) for first in inner.values())
    return listed or (alike and any(len(modules) > 1 for modules in lists))


def _with_others(model: nn.Module, observed: Observed, attending: list[str]) -> list[str]:
    """Blocks that attend, and those of their lists that do not: state spaces, convolutions, feed-forwards alone."""
    found = []
    for owner in dict.fromkeys(path.rpartition(".")[0] for path in attending):
        blocks = {f"{owner}.{name}": block for name, block in model.get_submodule(owner).named_children()}
        found += [p for p, block in blocks.items() if p in attending or (observed.calls(block) and _is_block(block))]
    return found


def _is_block(module: nn.Module) -> bool:
    """Whether a module is made of others, with a matrix among them."""
    return any(True for _ in module.children()) and any(p.dim() > 1 for p in module.parameters())


def _repeated(model: nn.Module, observed: Observed) -> list[list[str]]:
    """Without any attention: the outermost lists of modules that run and project something."""
    lists = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    outer = [(p, m) for p, m in lists if not any(p.startswith(f"{other}.") for other, _ in lists)]
    run = [(p, m) for p, m in outer if all(observed.calls(block) and _projects(block) for block in m)]
    return [[f"{path}.{index}" for index in range(len(module))] for path, module in run if len(module)]


def _projects(block: nn.Module) -> bool:
    return any(isinstance(module, nn.Linear) for module in block.modules())
