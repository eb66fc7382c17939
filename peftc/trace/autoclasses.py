"""The Auto classes of transformers that would build a model class: where an artifact can stand in for its base."""

from __future__ import annotations

from typing import Any

from transformers.models.auto import auto_factory, configuration_auto, modeling_auto


def auto_classes(name: str, model_type: str) -> tuple[str, ...]:
    """Names of the Auto classes whose mapping gives a model class of this name for a model type."""
    return tuple(
        sorted(
            auto
            for auto, found in vars(modeling_auto).items()
            if isinstance(found, type)
            and issubclass(found, auto_factory._BaseAutoModelClass)
            and name in _named(found, model_type)
        )
    )


def model_types() -> tuple[str, ...]:
    """Every model type that a config can name."""
    return tuple(configuration_auto.CONFIG_MAPPING)


def offers(auto: Any, model_type: str) -> bool:
    """Whether an Auto class builds a model of this type."""
    return bool(_named(auto, model_type))


def _named(auto: type[auto_factory._BaseAutoModelClass], model_type: str) -> tuple[str, ...]:
    names = auto._model_mapping._model_mapping.get(model_type, ()) if auto._model_mapping is not None else ()
    return (names,) if isinstance(names, str) else tuple(names)
