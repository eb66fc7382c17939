"""Which modules of a model are its layers: repeated blocks, some of which at least attend, tower by tower."""

from __future__ import annotations

from torch import nn

from peftc.graph.sites import dotted, within
from peftc.trace.record.observed import Observed
from peftc.trace.roles.normalising import is_norm


def layer_paths(model: nn.Module, observed: Observed) -> list[list[str]]:
    """The repeated blocks, one list per tower: elements of the outermost lists of blocks around what attends."""
    towers: dict[str, list[list[str]]] = {}
    for path in observed.attending(model):
        if around := _elements(model, path):
            towers.setdefault(around[0].rpartition(".")[0], []).append(around)
    found = [_with_others(model, observed, _blocks(model, chains)) for chains in towers.values()]
    return _apart(found) or _repeated(model, observed)


def _apart(towers: list[list[str]]) -> list[list[str]]:
    """Towers without what holds a block of another one."""
    every = {path for tower in towers for path in tower}
    left = [[p for p in tower if not any(p != other and within(other, p) for other in every)] for tower in towers]
    return [tower for tower in left if tower]


def beside(model: nn.Module, path: str) -> list[str]:
    """What stands at the same place as an element of a list, in other lists that are as long."""
    owner, _, index = path.rpartition(".")
    parent, own = owner.rpartition(".")[0], model.get_submodule(owner)
    if isinstance(model.get_submodule(parent), nn.ModuleList):
        return []  # a list of lists, each with blocks of its own
    lists = [(n, m) for n, m in model.get_submodule(parent).named_children() if isinstance(m, nn.ModuleList)]
    count = next((len(m) for _, m in lists if m is own), None)
    like = [dotted(parent, n, index) for n, m in lists if m is not own and len(m) == count]
    return [other for other in like if any(True for _ in model.get_submodule(other).children())]


def _elements(model: nn.Module, path: str) -> list[str]:
    """The elements of lists that a path runs through, the outermost first: `layers.3` of `layers.3.attention`.

    Where no list has elements with a norm (heads have none), sequences and dicts of blocks count as lists do; without
    those, any module that has several blocks of one class.  A sequence of blocks in a list is a stage of it.
    """
    parts = path.split(".")
    parents = [(".".join(parts[:end]), ".".join(parts[: end + 1])) for end in range(len(parts))]
    kinds = (lambda owner, _: isinstance(owner, nn.ModuleList), _is_container, _repeats)
    found = [[own for parent, own in parents if holds(model.get_submodule(parent), own)] for holds in kinds]
    found[0] += [own for last in found[0][-1:] for parent, own in parents if parent == last and own in found[1]]
    known = [elements for elements in found if elements]
    normed = (elements for elements in known if _has_norm(model.get_submodule(elements[0])))
    return next(normed, next(iter(known), []))


def _is_container(owner: nn.Module, element: str) -> bool:
    """Whether a sequence or a dict has several blocks like one of its own."""
    return isinstance(owner, nn.Sequential | nn.ModuleDict) and _repeats(owner, element)


def _repeats(owner: nn.Module, element: str) -> bool:
    """Whether a module has several blocks, with a norm in them, of the class of one of its own."""
    own = owner.get_submodule(element.rpartition(".")[2])
    alike = [module for module in owner.children() if type(module) is type(own)]
    return len(alike) > 1 and all(map(_is_block, alike)) and all(map(_has_norm, alike))


def _keeps_width(module: nn.Module) -> bool:
    """Whether a module has a norm, or a linear map that reads what another in it makes: heads only make parts."""
    maps = [m for m in module.modules() if isinstance(m, nn.Linear)]
    return _has_norm(module) or not {m.in_features for m in maps}.isdisjoint(m.out_features for m in maps)


def _has_norm(module: nn.Module) -> bool:
    return any(map(is_norm, module.modules()))


def _blocks(model: nn.Module, chains: list[list[str]]) -> list[str]:
    """One element of each chain: the outermost that is no stage, which only holds a list of blocks.

    What attends in a stage beside its blocks is in none of them.
    """
    level = 0
    while _are_stages(model, [chain[level:] for chain in chains]):
        level += 1
    chosen = list(dict.fromkeys(chain[min(level, len(chain) - 1)] for chain in chains))
    return [path for path in chosen if not any(other != path and within(other, path) for other in chosen)]


def _are_stages(model: nn.Module, chains: list[list[str]]) -> bool:
    """Whether the first elements are stages: lists, or modules whose lists repeat one class of block (not of heads).

    A module that has nothing but such a list is one too, however short the list.
    """
    inner = {chain[1].rpartition(".")[0]: chain[0] for chain in chains if len(chain) > 1}
    lists = [list(model.get_submodule(path).children()) for path in inner]
    alike = all(len({type(module) for module in modules}) == 1 and _keeps_width(modules[0]) for modules in lists)
    listed = any(isinstance(model.get_submodule(first), nn.ModuleList | nn.Sequential) for first in inner.values())
    bare = bool(inner) and all(_only_holds(model.get_submodule(first)) for first in inner.values())
    return listed or (alike and (bare or any(len(modules) > 1 for modules in lists)))


def _only_holds(module: nn.Module) -> bool:
    """Whether a module has one child, and no parameters beside those of that child."""
    return len(list(module.children())) == 1 and not list(module.parameters(recurse=False))


def _with_others(model: nn.Module, observed: Observed, attending: list[str]) -> list[str]:
    """Blocks that attend, and those of their lists that do not: state spaces, convolutions, feed-forwards alone."""
    found = []
    for owner in dict.fromkeys(o for path in attending for o in _lists(model, path.rpartition(".")[0])):
        module = model.get_submodule(owner)
        known = {type(model.get_submodule(path)) for path in attending if path.rpartition(".")[0] == owner}
        kinds = (nn.Module,) if isinstance(module, nn.ModuleList) else tuple(known)
        blocks = {dotted(owner, n): m for n, m in module.named_children() if isinstance(m, kinds)}
        found += [p for p, block in blocks.items() if p in attending or (observed.calls(block) and _is_block(block))]
    return found


def _lists(model: nn.Module, owner: str) -> list[str]:
    """A list of blocks, and those beside it where it stands in a list itself."""
    outer = model.get_submodule(owner.rpartition(".")[0])
    if not all(isinstance(module, nn.ModuleList) for module in (outer, model.get_submodule(owner))):
        return [owner]
    beside = ((dotted(owner.rpartition(".")[0], name), module) for name, module in outer.named_children())
    return [path for path, module in beside if isinstance(module, nn.ModuleList)]


def _is_block(module: nn.Module) -> bool:
    """Whether a module is made of others, with a matrix among them."""
    return any(True for _ in module.children()) and any(p.dim() > 1 for p in module.parameters())


def _repeated(model: nn.Module, observed: Observed) -> list[list[str]]:
    """Without any attention: the outermost lists of modules that run and project something."""
    lists = [(path, module) for path, module in model.named_modules() if _holds_blocks(module)]
    outer = [(p, m) for p, m in lists if not any(p.startswith(f"{other}.") for other, _ in lists)]
    blocks = [[f"{path}.{name}" for name, _ in module.named_children()] for path, module in outer]
    return [paths for paths in blocks if paths and all(_runs(model.get_submodule(p), observed) for p in paths)]


def _holds_blocks(module: nn.Module) -> bool:
    """Whether a module is a list, or a sequence or a dict of blocks of one class."""
    names = [name for name, _ in module.named_children()]
    return isinstance(module, nn.ModuleList) or (len(names) > 1 and all(_is_container(module, n) for n in names))


def _runs(block: nn.Module, observed: Observed) -> bool:
    return bool(observed.calls(block)) and _projects(block)


def _projects(block: nn.Module) -> bool:
    return any(isinstance(module, nn.Linear) for module in block.modules())
