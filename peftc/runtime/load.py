"""A compiled model from its folder, on the weights of a base."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from peftc.emit.folder import LOCK
from peftc.errors import PeftcError, Problem, raise_all
from peftc.runtime.lock import changed, locked
from peftc.runtime.namespace import module_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load(
    folder: str | Path,
    base: str | Path | None = None,
    *,
    revision: str | None = None,
    dtype: torch.dtype | str | None = None,
    device_map: str | Mapping[str, int | str] | None = None,
) -> PreTrainedModel:
    """The model of an artifact on the weights of `base`; of a folder that `save_pretrained` wrote, on its own weights.

    PeftcError where the folder is not what its lock says, `base` cannot be loaded, or the plain base would be.
    """
    place = Path(folder)
    if base is not None or (place / LOCK).is_file():
        raise_all(changed(place, locked(place)))
    return _built(_model_class(place), place, base, {"revision": revision, "dtype": dtype, "device_map": device_map})


def _built(compiled: Any, place: Path, base: str | Path | None, options: dict[str, Any]) -> PreTrainedModel:
    given = {key: value for key, value in options.items() if value is not None}
    if base is None and not any(place.glob("*.safetensors*")):
        raise PeftcError(Problem(f"{place} has no weights", hint="give base=, a folder or a hub id of the base"))
    try:
        model: PreTrainedModel = (
            compiled.from_base(base, **given) if base is not None else compiled.from_pretrained(place, **given)
        )
    except OSError as error:
        raise PeftcError(Problem(f"{base or place} cannot be loaded: {error}")) from error
    except ValueError as error:
        raise PeftcError(Problem(str(error))) from error
    return model


def _model_class(place: Path) -> Any:
    """The one model class that the config's auto_map names, from the folder's own source."""
    names = sorted(set(_json(place / "config.json").get("auto_map", {}).values()))
    files = [place / f"{name.partition('.')[0]}.py" for name in names]
    if len(names) != 1 or not files[0].is_file():
        raise PeftcError(
            Problem(
                f"{place} names no compiled model: transformers would load the plain base",
                hint="compile the spec again",
            )
        )
    module, _, name = names[0].partition(".")
    try:
        return getattr(module_of(module, files[0].read_text("utf-8")), name)
    except ImportError as error:
        raise PeftcError(Problem(f"{files[0]}: {error}")) from error


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise PeftcError(Problem(f"{path} cannot be read: {error}")) from error
    return found if isinstance(found, dict) else {}
