"""What the class of a compiled model is made of.  From the first class on, this is pasted into every artifact."""

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from types import MethodType, NoneType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

SEED: int = 0
CONFIG: dict[str, Any] = {}
TRAINED: tuple[str, ...] = ()


class Draw:
    """First values of one parameter, from (seed, name, shape) alone: drawn in float64 on the CPU, cast where stored."""

    def __init__(self, name: str, shape: Iterable[int]) -> None:
        key = hashlib.sha256(f"{SEED}:{name}".encode()).digest()
        self.shape = tuple(shape)
        self.generator = torch.Generator("cpu").manual_seed(int.from_bytes(key[:4], "little"))

    def normal(self, std: float) -> torch.Tensor:
        return std * torch.randn(self.shape, generator=self.generator, dtype=torch.float64, device="cpu")

    def uniform(self, bound: float) -> torch.Tensor:
        unit = torch.rand(self.shape, generator=self.generator, dtype=torch.float64, device="cpu")
        return bound * (2 * unit - 1)

    def zeros(self) -> torch.Tensor:
        return torch.zeros(self.shape, dtype=torch.float64, device="cpu")

    def ones(self) -> torch.Tensor:
        return torch.ones(self.shape, dtype=torch.float64, device="cpu")


def expand(pattern: str) -> list[tuple[str, int | None]]:
    """Every name that a pattern stands for, with its number: "layer.{0-1, 5}.q" is layer 0, 1 and 5."""
    head, brace, rest = pattern.partition("{")
    if not brace:
        return [(pattern, None)]
    runs, _, tail = rest.partition("}")
    bounds = [run.partition("-") for run in runs.split(",")]
    return [(f"{head}{n}{tail}", n) for first, _, last in bounds for n in range(int(first), int(last or first) + 1)]


def trained_names() -> list[str]:
    return [name for pattern in TRAINED for name, _ in expand(pattern)]


def report(title: str, complaints: Mapping[str, Collection[str]]) -> str:
    """One text out of named lists, the empty ones left out; "" where all are empty."""
    lines = [f"  {what}: {', '.join(sorted(names))}" for what, names in complaints.items() if names]
    return "\n".join([title, *lines]) if lines else ""


# Parts of a config that make no other model: labels are the compiled head's; the rest, and dropout, is the base's.
HEAD = {"id2label", "label2id", "problem_type", "num_labels"}
RECORDS = {"output_attentions", "output_hidden_states", "return_dict", "use_cache"}
FILE = {"_name_or_path", "architectures", "auto_map", "dtype", "initializer_range", "transformers_version"}
# How the model runs, not which model it is: handed on to transformers.
KERNELS = {"attn_implementation", "experts_implementation", "quantization_config"}


def tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def parts(tensor: Any) -> list[torch.Tensor]:
    """The tensors that hold the bytes of one: itself, or those inside a quantised one."""
    if not is_traceable_wrapper_subclass(tensor):
        return [tensor]
    return [part for name in tensor.__tensor_flatten__()[0] for part in parts(getattr(tensor, name))]


def fresh(name: str, draw: Draw, std: float) -> torch.Tensor:
    """First values of a head's parameter: N(0, std) for a matrix, ones for a norm's weight, zeros for a bias."""
    if len(draw.shape) > 1:
        return draw.normal(std)
    return draw.ones() if name.endswith("weight") else draw.zeros()


def replace_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_bytes(content)
    temporary.replace(path)


def read_adapter(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The facts and the tensors of an adapter's files; ValueError where they are not as `save_adapter` wrote them."""
    try:
        facts = json.loads((folder / "adapter.json").read_text(encoding="utf-8"))
        weights = (folder / "adapter.safetensors").read_bytes()
    except (OSError, RecursionError, ValueError) as error:
        raise ValueError(f"{folder} holds no adapter that can be read: {error}") from error
    if not isinstance(facts, dict):
        raise ValueError(f"{folder / 'adapter.json'} is not a JSON object")
    if facts.get("sha256") != hashlib.sha256(weights).hexdigest():
        raise ValueError(f"{folder / 'adapter.safetensors'} is not the file whose sha256 adapter.json has")
    try:
        return facts, load(weights)
    except SafetensorError as error:
        raise ValueError(f"{folder / 'adapter.safetensors'} holds no tensors: {error}") from error


def known(config: Any, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The overrides under the config's own names; ValueError where it has no such name."""
    names = HEAD | config.to_dict().keys() | config.attribute_map.keys()
    nearest = {key: get_close_matches(key, sorted(names), 1) for key in overrides.keys() - names}
    if unknown := [f"{key} (the nearest is {near[0]})" if near else key for key, near in nearest.items()]:
        raise ValueError(report(f"{type(config).__name__} lacks what is overridden", {"unknown": unknown}))
    return {config.attribute_map.get(key, key): value for key, value in overrides.items()}


def settings(config: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """What makes a config's model: values by key, those of a config inside it by a dotted one; no rate of dropout."""
    found: dict[str, Any] = {}
    for key, value in ((str(key), value) for key, value in config.items()):
        if isinstance(value, Mapping) and key not in HEAD:
            found |= settings(value, f"{above}{key}.")
        elif key not in HEAD | RECORDS | FILE and not ("drop" in key and type(value) in (int, float, NoneType)):
            found[above + key] = value
    return found


def model_type(config_class: Any, written: Mapping[str, Any]) -> str:
    """The type that a base's file says it is; the class's where it, or a part of it, is of that or of the compiled."""
    own = str(config_class.model_type)
    said = [part.get("model_type") for part in (written, *written.values()) if isinstance(part, Mapping)]
    is_own = config_class.base_config_key in written or not {own, CONFIG.get("model_type", own)}.isdisjoint(said)
    return own if is_own else str(written.get("model_type", own))


def base_config(config_class: Any, base: str | Path, at: Mapping[str, str], overrides: dict[str, Any]) -> Any:
    """The base's own config with these overrides; ValueError where that makes another model than the compiled one."""
    config, compiled = config_class.from_pretrained(base, **at), config_class.from_dict(CONFIG).to_dict()
    said = {"model_type": model_type(config_class, config_class.get_config_dict(base, **at)[0])}
    overrides = known(config, overrides)
    config.update({key: compiled[key] for key in HEAD if key in compiled} | overrides)
    theirs, ours = settings(config.to_dict() | said), settings(compiled)
    keys = ours.keys() | (theirs.keys() & overrides.keys())
    if different := [key for key in keys if theirs.get(key) != ours.get(key)]:
        told = [f"{key} is {theirs.get(key)!r}, not {ours.get(key)!r}" for key in different]
        raise ValueError(report(f"{base} is not the base this file was compiled for", {"config": told}))
    return config


def build(owner: nn.Module, dtype: torch.dtype, make: Callable[..., None], *arguments: Any) -> list[str]:
    """Run `make`, which sets new modules on `owner`, beside its tensors; their names.  No random number is drawn."""
    before, device = set(owner._modules), next(owner.parameters()).device
    with torch.device("meta"):
        make(*arguments)
    names = [name for name in owner._modules if name not in before]
    for name in names:
        module = owner.get_submodule(name).train(owner.training).to(dtype)
        if device.type != "meta":
            module.to_empty(device=device)
    return names


def unit_at(model: nn.Module, path: str) -> Any:
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise ValueError(f"the model lacks {path}: its config is not the one this file was compiled for") from error


def swap(path: str, module: nn.Module, unit: type[Any]) -> None:
    if type(module) is not unit.__bases__[0]:
        raise TypeError(f"{path} is {type(module)}, not {unit.__bases__[0]}: compiled for another model")
    become(module, unit)


def become(module: nn.Module, unit: type[Any]) -> None:
    """Change a module's class, and with it the forward that accelerate's hooks have put aside."""
    module.__class__ = unit
    if "_old_forward" in vars(module):
        vars(module)["_old_forward"] = MethodType(unit.forward, module)


def give(parameters: Mapping[str, nn.Parameter], values: Mapping[str, torch.Tensor]) -> None:
    """Put other values into these parameters, unseen by autograd."""
    for name, value in values.items():
        parameters[name].data = value.to(parameters[name])
    torch.clear_autocast_cache()


def on_disk(model: Any, names: Collection[str]) -> list[str]:
    """Those of these tensors that the model's device map has put on disk."""
    placed = getattr(model, "hf_device_map", {})
    above = {name: [p for p in placed if not p or f"{name}.".startswith(f"{p}.")] for name in names}
    return [name for name, paths in above.items() if paths and placed[max(paths, key=len)] == "disk"]
