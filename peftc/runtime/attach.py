"""A loaded model, rewritten in place by executing the emitted source."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, TypeVar

from torch import nn
from transformers import PreTrainedModel
from transformers.utils.output_capturing import _CAN_RECORD_REGISTRY

from peftc.emit.artifact import Artifact
from peftc.errors import PeftcError, Problem, raise_all
from peftc.runtime.namespace import module_of

M = TypeVar("M", bound=nn.Module)

HOOK = "_hf_hook"  # where accelerate keeps what it does around a module's forward


def attach(model: M, artifact: Artifact) -> M:
    """The same model with the units and additions of an artifact, frozen.  PeftcError before anything is changed."""
    check_untouched(model)
    emitted = _emitted(artifact)
    compiled: Any = vars(emitted).get(type(model).__name__)
    if compiled is None or compiled.__bases__[1] is not type(model):
        raise PeftcError(
            Problem(f"{artifact.name} was not compiled for {type(model).__module__}.{type(model).__qualname__}")
        )
    misplaced = [path for path, wanted in places(emitted) if _class_at(model, path) is not wanted]
    if misplaced:
        raise PeftcError(
            Problem(f"{artifact.name} was compiled for another model: {', '.join(misplaced)} are not its units")
        )
    model.__class__ = compiled
    compiled.attach(model)
    compiled.remember_base(model)
    if isinstance(model, PreTrainedModel):
        _CAN_RECORD_REGISTRY[model] = model._can_record_outputs  # what its constructor does, under the new class
    return model


def check_untouched(model: nn.Module) -> None:
    """PeftcError where something else has already changed this model."""
    raise_all(_obstacles(model))


def places(emitted: Any) -> Iterator[tuple[str, type[nn.Module]]]:
    """(path, base class) of every unit of an emitted module."""
    for pattern, unit in emitted.UNITS.items():
        for path, _ in emitted.expand(pattern):
            yield path, unit.__bases__[0]


def _emitted(artifact: Artifact) -> Any:
    try:
        return module_of(artifact.module, artifact.files[f"{artifact.module}.py"])
    except ImportError as error:
        raise PeftcError(Problem(str(error))) from error


def _class_at(model: nn.Module, path: str) -> type[nn.Module] | None:
    return next((type(module) for name, module in model.named_modules() if name == path), None)


def _obstacles(model: nn.Module) -> Iterator[Problem]:
    """What else has already changed this model."""
    compiled = [name or type(model).__name__ for name, module in model.named_modules() if _is_compiled(module)]
    if compiled:
        yield Problem(
            f"{', '.join(compiled)}: peftc is attached already",
            hint="load the base again and attach one spec with all methods",
        )
        return
    foreign = [
        name or "the model" for name, module in model.named_modules() if type(module).__module__.split(".")[0] == "peft"
    ]
    if foreign:
        yield Problem(
            f"the peft library has changed this model: {_few(foreign)}", hint="merge or unload its adapters first"
        )
    modules = dict(model.named_modules())
    lost = sorted({type(module).__module__ for module in modules.values()} - sys.modules.keys())
    if lost:
        hint = "what loads a file by its path must put the module into sys.modules, too"
        yield Problem(f"the classes of this model are in modules that no import finds: {_few(lost)}", hint=hint)
    hooked = {name for name, module in modules.items() if HOOK in vars(module)}
    away = [name for name in sorted(hooked) if any(p.is_meta for p in modules[name].parameters(recurse=False))]
    if away:
        hint = "attach first, then dispatch; or accelerate.hooks.remove_hook_from_submodules(model)"
        yield Problem(f"accelerate has offloaded {_few(away)}: additions would have no place", hint=hint)


def _is_compiled(module: nn.Module) -> bool:
    """Whether an emitted model class made this module; its base class is emitted too, so its name is all there is."""
    return any(base.__name__ == "Compiled" and "TRAINED" in vars(_home(base)) for base in type(module).__mro__)


def _home(base: type) -> Any:
    return sys.modules.get(base.__module__, base)


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
