"""gpt2-prefix: GPT2LMHeadModel with prefix.

Compiled by peftc from the spec gpt2-prefix: edit that, not this file.  Needs torch and transformers only.
Trains 184,320 parameters, stores 184,320.  See budget.md.
"""

import hashlib
import inspect
import json
import sys
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path
from types import MethodType, ModuleType, NoneType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers.cache_utils import EncoderDecoderCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.gpt2 import modeling_gpt2 as base

# What this file was compiled against: sha256 of each source text.
SOURCES = {
    base: {
        "GPT2Attention": "5a606ab2e30ecf9246c7729537eea6592de81c2cda585d854b7bcf5f909b3b81",
        "GPT2LMHeadModel": "7d53a4582341a53394be619635f08e75da71a174612daaf129ec90733ee74fd9",
        "eager_attention_forward": "cb6bdf8e3794461e0cd9ee628e719f51d8f00f197c02cc7c405b8971ec3b7d6c",
    },
}
NAME = "gpt2_prefix"
SEED = 42
DTYPE = torch.float32


def check_sources(sources: dict[ModuleType, dict[str, str]]) -> None:
    """ImportError where the source of a class or function is not the one that this file was compiled against."""
    changed = []
    for module, digests in sources.items():
        for name, digest in digests.items():
            found = getattr(module, name, None)
            if found is None or hashlib.sha256(inspect.getsource(found).encode()).hexdigest() != digest:
                changed.append(f"{module.__name__}.{name}")
    if changed:
        raise ImportError(
            f"not the code that this file was compiled against, under transformers {version('transformers')}: "
            f"{', '.join(changed)}; recompile the spec with peftc, or install the version in peftc.lock.json"
        )


check_sources(SOURCES)


class Prefix(nn.Module):
    """() -> the tables P_K and P_V of one attention.  Li and Liang 2021, arXiv:2101.00190.

    key (length, key_width), value (length, value_width).
    """

    def __init__(self, length: int, key_width: int, value_width: int) -> None:
        super().__init__()
        self.key = nn.Parameter(torch.empty(length, key_width))
        self.value = nn.Parameter(torch.empty(length, value_width))

    def forward(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.key, self.value

    def initial(self, name: str, draw: "Draw") -> torch.Tensor:
        return draw.normal(0.02)


def expect_none(unit: nn.Module, **arguments: object) -> None:
    """ValueError where an argument is given that no call of the base gave when this file was compiled."""
    for name, value in arguments.items():
        if value is not None:
            raise ValueError(
                f"{type(unit).__name__} was compiled for {name}=None: recompile for a base that gives another"
            )


def prefix_like(table: torch.Tensor, states: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
    """Keys or values (length, heads * width) as (batch, heads, length, width), times a gate.

    `states` (batch, heads, ..., width) say the batch and the width.
    """
    table = table.to(states.device).unflatten(-1, (-1, states.shape[-1])).transpose(0, 1)
    table = table if gate is None else table * gate.reshape(-1, 1, 1, 1)
    return table.to(states.dtype).expand(states.shape[0], -1, -1, -1)


def with_prefix(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    prefix: tuple[torch.Tensor, torch.Tensor],
    gate: torch.Tensor | None = None,
    causal: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """[P_K; key], [P_V; value], and the mask that lets every query see the prefix; a gate scales P_K and P_V.

    query, key, value (batch, heads, length, width); a mask ends in the keys: bool, 0 and 1, or added to the scores.
    None under causal attention means what torch's `is_causal` means, that query i sees the keys 0 to i: the keys of a
    static cache go on beyond the last query.
    """
    length, queries, keys = prefix[0].shape[0], query.shape[2], key.shape[2]

    def joined(table: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        return torch.cat([prefix_like(table, states, gate), states], dim=2)

    if mask is None and causal and queries > 1:
        blocked = torch.finfo(query.dtype).min
        mask = query.new_full((1, 1, queries, keys), blocked).triu(1)
    if mask is None:
        return joined(prefix[0], key), joined(prefix[1], value), None
    if not isinstance(mask, torch.Tensor):
        raise TypeError(f"a prefix needs a mask that is a tensor or None, not {type(mask).__name__}: use sdpa or eager")
    seen = mask.new_full((*mask.shape[:-1], length), 0 if mask.is_floating_point() else 1)
    return joined(prefix[0], key), joined(prefix[1], value), torch.cat([seen, mask], dim=-1)


class GPT2Attention(base.GPT2Attention):
    """Layers 0-11: prefix on attention."""

    def attach(self, model, layer):
        self.attention_prefix = Prefix(length=10, key_width=768, value_width=768)

    def forward(
        self,
        hidden_states,
        past_key_values=None,
        attention_mask=None,
        encoder_hidden_states=None,
        encoder_attention_mask=None,
        output_attentions=False,
        **kwargs,
    ):
        expect_none(self, encoder_hidden_states=encoder_hidden_states)
        if past_key_values is not None and isinstance(past_key_values, EncoderDecoderCache):
            raise ValueError(
                "GPT2Attention is not compiled for such inputs: isinstance(past_key_values, EncoderDecoderCache)"
            )
        query_states, key_states, value_states = self.c_attn(hidden_states).split(self.split_size, dim=2)
        shape_kv = (*key_states.shape[:-1], -1, self.head_dim)
        key_states = key_states.view(shape_kv).transpose(1, 2)
        value_states = value_states.view(shape_kv).transpose(1, 2)
        query_states = query_states.view((*query_states.shape[:-1], -1, self.head_dim)).transpose(1, 2)
        if past_key_values is not None:
            key_states, value_states = past_key_values.update(key_states, value_states, self.layer_idx)
        attention_interface = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, base.eager_attention_forward
        )
        # prefix on attention
        key_states, value_states, attention_mask = with_prefix(
            query_states, key_states, value_states, attention_mask, self.attention_prefix(), causal=True
        )
        attn_output, attn_weights = attention_interface(
            self,
            query_states,
            key_states,
            value_states,
            attention_mask,
            dropout=self.attn_dropout.p if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        attn_output = attn_output.reshape(*attn_output.shape[:-2], -1).contiguous()
        attn_output = self.c_proj(attn_output)
        return self.resid_dropout(attn_output), attn_weights


# Which class goes where, and which parameters train; {0-2, 5} stands for 0, 1, 2 and 5.
UNITS = {"transformer.h.{0-11}.attn": GPT2Attention}
TRAINED = ("transformer.h.{0-11}.attn.attention_prefix.key", "transformer.h.{0-11}.attn.attention_prefix.value")

# The plan that this file implements, the base's config without its defaults, and what loads the model.
PLAN = "ebd458a0d08edc8e5687c71c58932563f9e65b5c79a9a2732bc0d32f919b79ed"
CONFIG = {}
AUTO_CLASSES = ("AutoModelForCausalLM", "AutoModelForPreTraining")


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
            model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
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
        super()._adjust_missing_and_unexpected_keys(found)
        added = self.added_names()
        fresh = {name for name in found.missing_keys if name in added or self.in_head(name)}
        self.initialise(fresh | (added - self.state_dict().keys()))
        self._lacked = set(found.missing_keys) & (added | self.kept().keys())
        found.missing_keys -= self._lacked

    def _get_dtype_plan(self, dtype: torch.dtype) -> dict[str, torch.dtype]:
        """As the base's, whose words for what stays wide may stand in the names of additions, too: those come first."""
        own = {f"^{path}[.]": p.dtype for path in self.added for p in self.get_submodule(path).parameters()}
        return own | super()._get_dtype_plan(dtype)

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
        config = base_config(cls.config_class, base, at, config_overrides)
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
        super().save_pretrained(save_directory, is_main_process, *args, **kwargs)
        if is_main_process:
            source = inspect.getsource(sys.modules[emitted.__module__])
            replace_file(Path(save_directory) / f"modeling_{NAME}.py", source.encode())

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> Any:
        """As the base's; what trains is as it was: transformers has all that is in an embedding train as its table."""
        table = super().resize_token_embeddings(*args, **kwargs)
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


class GPT2LMHeadModel(Compiled, base.GPT2LMHeadModel):
    """The base with the units above: from_base, from_pretrained, save_adapter, load_adapter, …."""
