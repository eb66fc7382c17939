"""Which keys of a written config mean something to its model: transformers takes any, and says nothing."""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import (
    AutoConfig,
    GenerationConfig,
    PreTrainedConfig,
    configuration_utils,
    modeling_rope_utils,
    modeling_utils,
)

from peftc.trace.record.model import UNREAD

SHARED = (configuration_utils, modeling_rope_utils, modeling_utils)

if TYPE_CHECKING:
    from peftc.spec.schema import Base


def dead_keys(base: Base) -> list[tuple[str, str]]:
    """What a spec's config has that no code of its model asks for: (key, the nearest one that it has, or "")."""
    written = dict(base.config or {})
    if not written:
        return []
    default = AutoConfig.for_model(str(written["model_type"]))
    known = {*default.to_dict(), *default.attribute_map, "num_labels"}
    accepted = known | GenerationConfig().to_dict().keys()
    unknown = [key for key in written if key not in accepted]
    source = "\n".join(_sources(default)) if unknown else ""
    dead = [key for key in unknown if not (_is_read(key, source) or _changes(key, written))]
    return [(key, _nearest(key, known)) for key in dead]


def _nearest(key: str, known: Collection[str]) -> str:
    """The shortest name with all the words of a key, as num_hidden_layers has those of num_layers; or the closest."""
    longer = [name for name in known if set(key.split("_")) <= set(name.split("_"))]
    close = [min(longer, key=lambda name: (len(name), name))] if longer else get_close_matches(key, known, 1)
    return next(iter(close), "")


def _sources(config: PreTrainedConfig) -> Iterator[str]:
    """The files beside a config class, and what reads the config of every model."""
    beside = sorted(Path(inspect.getfile(type(config))).parent.glob("*.py"))
    for file in (*beside, *(Path(inspect.getfile(module)) for module in SHARED)):
        yield file.read_text("utf-8")


def _is_read(key: str, source: str) -> bool:
    """Whether code asks a config for a key: config.key, getattr(config, "key"), kwargs.get("key"), "key" in kwargs."""
    quoted = rf"""["']{re.escape(key)}["']"""
    asked = rf"getattr\([^()]*,\s*{quoted}|\.(get|pop|setdefault)\(\s*{quoted}|{quoted} (not )?in "
    return re.search(rf"config\.{re.escape(key)}\b|{asked}", source) is not None


def _changes(key: str, written: Mapping[str, Any]) -> bool:
    """Whether the config is another one without the key, apart from the key itself."""
    kind, rest = str(written["model_type"]), {k: v for k, v in written.items() if k != "model_type"}
    try:
        without = AutoConfig.for_model(kind, **{k: v for k, v in rest.items() if k != key})
    except UNREAD:
        return True
    return {**AutoConfig.for_model(kind, **rest).to_dict(), key: None} != {**without.to_dict(), key: None}
