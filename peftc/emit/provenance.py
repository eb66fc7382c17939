"""Where an artifact comes from: the facts of config.json and peftc.lock.json."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from torch import nn

import peftc
from peftc.emit.module import Source
from peftc.plan import Plan
from peftc.report.render import as_json

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Json = dict[str, object]

LABELS = ("id2label", "label2id")
SILENT = ("_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version")


def base_config(model: nn.Module) -> tuple[Json, Json]:
    """The config of a model as transformers writes it, whole and without its defaults; no versions, no paths."""
    config: Any = getattr(model, "config", None)
    if all(base.__name__ != "PreTrainedConfig" for base in type(config).__mro__):
        return {}, {}  # a model of the user's own, whose config transformers cannot write
    whole = _plain(json.loads(config.to_json_string(use_diff=False)))
    config_class = getattr(type(model), "config_class", None) or type(config)
    own = _beside(whole, config_class())
    own |= _beside(whole, config_class.from_dict(_numbers(own)))  # a default may follow from another value
    return whole, _counted(_numbers(own))


def _numbers(config: Json) -> Json:
    """A config whose numbers that JSON has no word for, as infinity, are numbers again."""
    found: Json = json.loads(json.dumps(config), object_hook=_number)
    return found


def _number(value: Json) -> Json | float:
    return float(str(value["__float__"])) if value.keys() == {"__float__"} else value


def _beside(whole: Json, config: PreTrainedConfig) -> Json:
    """What a config does not say already."""
    said = json.loads(config.to_json_string(use_diff=False))
    return {key: value for key, value in whole.items() if key not in said or said[key] != value}


def _counted(config: Json) -> Json:
    """A config whose labels are numbers by another name has their number instead."""
    labels = config.get("id2label")
    if not isinstance(labels, dict) or labels != {str(i): f"LABEL_{i}" for i in range(len(labels))}:
        return config
    return {key: value for key, value in config.items() if key not in LABELS} | {"num_labels": len(labels)}


def _plain(config: Mapping[str, object]) -> Json:
    return {key: value for key, value in sorted(config.items()) if key not in SILENT}


def config_text(model: nn.Module, auto_classes: tuple[str, ...], module: str) -> str:
    """config.json: the base's, with the Auto classes that build the compiled model."""
    name = type(model).__name__
    config, _ = base_config(model)
    return as_json({**config, "architectures": [name], "auto_map": dict.fromkeys(auto_classes, f"{module}.{name}")})


def lock_text(plan: Plan, files: Mapping[str, str], source: Source, proved: object) -> str:
    """peftc.lock.json: hashes of all that decides the artifact; `versions` alone may differ between equal compiles."""
    return as_json(
        {
            "schema": 1,
            "name": plan.spec.name,
            "seed": plan.spec.seed,
            "dtype": plan.spec.dtype,
            "base": {"model": plan.spec.base.model, "revision": plan.spec.base.revision, "task": plan.spec.base.task},
            "spec": plan.spec.digest,
            "plan": plan.hash,
            "base_config": sha256(as_json(base_config(plan.trace.model)[0])),
            "files": {name: sha256(text) for name, text in sorted(files.items())},
            "sources": dict(sorted(source.stands_on.items())),
            "proof": proved,
            "versions": {
                "peftc": peftc.__version__,
                "torch": version("torch"),
                "transformers": version("transformers"),
            },
        }
    )


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
