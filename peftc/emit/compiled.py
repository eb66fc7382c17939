"""What a compiled model does besides running.  From the class on, this is pasted into every artifact."""

import hashlib
import inspect
import json
import sys
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from peftc.emit.machinery import (
    KERNELS,
    SEED,
    Draw,
    base_config,
    become,
    build,
    expand,
    fresh,
    give,
    on_disk,
    parts,
    read_adapter,
    replace_file,
    report,
    swap,
    tensors,
    trained_names,
    unit_at,
)

NAME: str = ""
DTYPE: torch.dtype | None = None
PLAN: str = ""
AUTO_CLASSES: tuple[str, ...] = ()
UNITS: dict[str, type[Any]] = {}


class Compiled(nn.Module):
    """A base model whose units are swapped for the classes above: strict loading, adapter files, freezing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.attach()

    def share(self) -> None:
        """Build what several units share."""

    def attach(self) -> None:
        """Swap the units' classes, build the additions (their values depend on seed and name alone), freeze."""
        dtype = DTYPE or next(p.dtype for p in self.parameters() if p.is_floating_point())
        self.base_values: dict[str, torch.Tensor] = {}
        self.holds_base = False  # what trains in place, inside disable_adapter
        self.added = build(self, dtype, self.share)
        for pattern, unit in UNITS.items():
            for path, layer in expand(pattern):
                module = unit_at(self, path)
                swap(path, module, unit)
                self.added += [f"{path}.{name}" for name in build(module, dtype, module.attach, self, layer)]
        split = set(getattr(self, "_no_split_modules", None) or ())
        self._no_split_modules = split | {u.__name__ for u in UNITS.values() if u.__bases__[0].__name__ in split}
        self.initialise(self.added_names())
        self.freeze()

    def added_names(self) -> set[str]:
        """The tensors of the additions, buffers included."""
        return {f"{path}.{name}" for path in self.added for name, _ in tensors(self.get_submodule(path))}

    def in_head(self, name: str) -> bool:
        """Whether a tensor of the base lies outside the base model: a head, which a checkpoint may lack."""
        prefix = getattr(self, "base_model_prefix", "")
        return prefix in self._modules and not name.startswith(prefix + ".")

    @torch.no_grad()
    def initialise(self, names: Collection[str]) -> None:
        """Give these tensors, of additions or of a fresh head, their first values, and touch no other."""
        for path in self.added:
            module: Any = self.get_submodule(path)
            for name, tensor in tensors(module):
                if f"{path}.{name}" in names and not tensor.is_meta:
                    tensor.copy_(module.initial(name, Draw(f"{path}.{name}", tensor.shape)))
        std, added = getattr(getattr(self, "config", None), "initializer_range", 0.02), self.added_names()
        for name, parameter in self.named_parameters():
            if name in names and name not in added:
                parameter.copy_(fresh(name, Draw(name, parameter.shape), std))

    def freeze(self) -> None:
        """Let train exactly what the spec trains."""
        parameters, names = dict(self.named_parameters()), trained_names()
        if absent := [name for name in names if name not in parameters]:
            raise ValueError(report("the model lacks parameters that train", {"absent": absent}))
        self.requires_grad_(False)
        for name in names:
            parameters[name].requires_grad_(True)

    @classmethod
    def base_class(cls) -> Any:
        """The class that this one adds to."""
        return next(c for c in cls.__mro__ if not issubclass(c, Compiled))

    @classmethod
    def is_custom_code(cls) -> bool:
        """As the base: transformers renames and converts the tensors of its own models' checkpoints alone."""
        return bool(cls.base_class().is_custom_code())

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        """As the base: transformers reads it from the text of a class's file."""
        return bool(cls.base_class()._can_set_attn_implementation())

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        """As the base: transformers reads it from the text of a class's file."""
        return bool(cls.base_class()._can_set_experts_implementation())

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """As the base's, and frozen; what a checkpoint lacks of the additions or of a head gets its seeded values.

        So does what it has in another shape, where `ignore_mismatched_sizes` allows that.
        """
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)  # type: ignore[misc]
        lacked, added = model.__dict__.pop("_lacked", set()), model.added_names()
        missing = set(info["missing_keys"]) | lacked
        if absent := {name for name in missing - added if not model.in_head(name)}:
            raise ValueError(report(f"{args[0] if args else NAME} is no complete base", {"missing": absent}))
        if lost := on_disk(model, lacked):
            raise ValueError(report("no device_map can put new tensors on disk: dispatch later", {"new": lost}))
        model.initialise({name for name, *_ in info["mismatched_keys"] if name in added or model.in_head(name)})
        model.freeze()
        return (model, {**info, "missing_keys": missing}) if output_loading_info else model

    def _adjust_missing_and_unexpected_keys(self, found: Any) -> None:
        """Give what a checkpoint lacks its first values, before any is moved off; it is no complaint of its own."""
        super()._adjust_missing_and_unexpected_keys(found)  # type: ignore[misc]
        added = self.added_names()
        fresh = {name for name in found.missing_keys if name in added or self.in_head(name)}
        self.initialise(fresh | (added - self.state_dict().keys()))
        self._lacked = set(found.missing_keys) & (added | self.kept().keys())
        found.missing_keys -= self._lacked

    def _get_dtype_plan(self, dtype: torch.dtype) -> dict[str, torch.dtype]:
        """As the base's, whose words for what stays wide may stand in the names of additions, too: those come first."""
        own = {f"^{path}[.]": p.dtype for path in self.added for p in self.get_submodule(path).parameters()}
        return own | super()._get_dtype_plan(dtype)  # type: ignore[misc, no-any-return]

    @classmethod
    def from_base(
        cls,
        base: str | Path,
        *,
        revision: str | None = None,
        dtype: torch.dtype | str | None = None,
        device_map: Any = None,
        **config_overrides: Any,
    ) -> Any:
        """This model on the weights of a base: a folder or a hub id.  ValueError where the base is another one.

        Overrides are keys of the base's config that change no forward (labels, dropout, …), or what `KERNELS` names.
        """
        at: dict[str, Any] = {"revision": revision} if revision else {}
        kernels = {key: config_overrides.pop(key) for key in KERNELS & config_overrides.keys()}
        config = base_config(cls.config_class, base, at, config_overrides)  # type: ignore[attr-defined]
        options = {"config": config, "dtype": dtype, "device_map": device_map, "output_loading_info": True}
        model, info = cls.from_pretrained(base, ignore_mismatched_sizes=True, **options, **kernels, **at)
        other = {name for name, *_ in info["mismatched_keys"]}
        if strange := {name for name in other if not model.in_head(name)}:
            raise ValueError(report(f"{base} does not fit the config", {"of another shape": strange}))
        if other:
            warnings.warn(
                report(f"{base}: its head has another shape, so it starts afresh", {"fresh": other}), stacklevel=2
            )
        if unknown := {name for name in info["unexpected_keys"] if not model.in_head(name)}:
            warnings.warn(report(f"{base}: tensors that this model has no place for", {"left": unknown}), stacklevel=2)
        model.remember_base()
        return model

    def save_pretrained(
        self, save_directory: str | Path, is_main_process: bool = True, *args: Any, **kwargs: Any
    ) -> None:
        """As the base's, with this source beside the weights: the folder loads with `trust_remote_code=True`."""
        self.kept()
        config: Any = self.config
        emitted = next(c for c in type(self).__mro__ if c.__module__ == Compiled.__module__)  # FSDP puts one before it
        config.auto_map = dict.fromkeys(AUTO_CLASSES, f"modeling_{NAME}.{emitted.__name__}")
        super().save_pretrained(save_directory, is_main_process, *args, **kwargs)  # type: ignore[misc]
        if is_main_process:
            source = inspect.getsource(sys.modules[emitted.__module__])
            replace_file(Path(save_directory) / f"modeling_{NAME}.py", source.encode())

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> Any:
        """As the base's; what trains is as it was: transformers has all that is in an embedding train as its table."""
        table = super().resize_token_embeddings(*args, **kwargs)  # type: ignore[misc]
        self.freeze()
        return table

    def kept(self) -> dict[str, nn.Parameter]:
        """What an adapter file holds: the parameters that were added or train, with their trained values."""
        if self.holds_base:
            raise ValueError("inside disable_adapter what trains in place has the base's values: save and load outside")
        kept = self.added_names() | set(trained_names())
        return {name: p for name, p in self.named_parameters() if name in kept}

    def base_hash(self) -> str:
        """sha256 over names, dtypes and bytes of the frozen base."""
        kept, digest = self.kept(), hashlib.sha256()
        frozen = [(name, p.detach()) for name, p in self.named_parameters() if name not in kept]
        if away := {name for name, p in self.named_parameters() if p.is_meta}:
            raise ValueError(report("first accelerate.hooks.remove_hook_from_submodules(model)", {"offloaded": away}))
        for name, p in sorted(frozen, key=lambda item: item[0]):
            digest.update(f"{name} {p.dtype} {tuple(p.shape)}".encode())
            for part in parts(p):
                digest.update(part.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def identity(self) -> dict[str, str]:
        """What an adapter must agree on with the model that loads it."""
        return {"plan": PLAN, "seed": str(SEED), "base": self.base_hash()}

    def save_adapter(self, directory: str | Path) -> None:
        """Write what was added or trains: adapter.safetensors, and adapter.json which says for which plan and base."""
        folder, identity = Path(directory), self.identity()
        folder.mkdir(parents=True, exist_ok=True)
        weights = save({name: p.detach().cpu().contiguous() for name, p in self.kept().items()})
        facts = {
            **identity,
            "dtype": str(DTYPE),
            "sha256": hashlib.sha256(weights).hexdigest(),
            "tensors": {name: {"dtype": str(p.dtype), "shape": list(p.shape)} for name, p in self.kept().items()},
            "versions": {name: version(name) for name in ("torch", "transformers")},
        }
        replace_file(folder / "adapter.safetensors", weights)
        replace_file(folder / "adapter.json", (json.dumps(facts, indent=2, sort_keys=True) + "\n").encode())

    @torch.no_grad()
    def load_adapter(self, directory: str | Path) -> None:
        """Read back what `save_adapter` wrote; ValueError, and nothing changed, where anything does not fit."""
        folder, mine = Path(directory), self.kept()
        facts, theirs = read_adapter(folder)
        shared = mine.keys() & theirs.keys()
        complaints = {
            "adapter.json has another": {key for key, value in self.identity().items() if facts.get(key) != value},
            "missing": mine.keys() - theirs.keys(),
            "not of this model": theirs.keys() - mine.keys(),
            "of another shape": {n for n in shared if mine[n].shape != theirs[n].shape},
            "of another dtype": {n for n in shared if mine[n].dtype != theirs[n].dtype},
        }
        if problem := report(f"{folder} does not fit this model", complaints):
            raise ValueError(problem)
        for name in shared:
            mine[name].copy_(theirs[name])

    def print_trainable_parameters(self) -> None:
        """Print how many parameters train, of how many."""
        total = sum(p.numel() for p in self.parameters())
        trained = sum(p.numel() for p in self.parameters() if p.requires_grad)
        print(f"trainable params: {trained:,} || all params: {total:,} || trainable%: {100 * trained / total:.4f}")

    def in_place(self) -> dict[str, nn.Parameter]:
        """The parameters of the base, its head left out, that train."""
        parameters, added = dict(self.named_parameters()), self.added_names()
        return {n: parameters[n] for n in trained_names() if n not in added and not self.in_head(n)}

    def remember_base(self) -> None:
        """Keep the values of the base's vectors that train, for `disable_adapter`; matrices would be a second base."""
        vectors = {name: p.detach() for name, p in self.in_place().items() if p.dim() < 2 and not p.is_meta}
        self.base_values = {name: p.to("cpu", copy=True) for name, p in vectors.items()}

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """The base inside a `with`: its own forwards, and its own values of what trains; a head stays as it is."""
        changed = self.in_place()
        values = {n: value for n, value in self.base_values.items() if n in changed and not changed[n].is_meta}
        if unknown := changed.keys() - values.keys():
            known = "not switched off: only from_base and peftc.attach keep the base's values, of vectors in memory"
            warnings.warn(report(known, {"trained": unknown}), stacklevel=3)
        kinds = tuple(UNITS.values())
        if other := {p for p, m in self.named_modules() if isinstance(m, kinds) and type(m) not in kinds}:
            raise ValueError(report("not switched off: something has changed classes", {"changed": other}))
        units = [(module, type(module)) for module in self.modules() if type(module) in kinds]
        trained, before = {name: changed[name].data for name in values}, self.holds_base
        try:
            for module, unit in units:
                become(module, unit.__bases__[0])
            give(changed, values)
            self.holds_base = bool(values) or before
            yield
        finally:
            for module, unit in units:
                become(module, unit)
            give(changed, trained)
            self.holds_base = before
