"""The Auto classes of transformers that would build a model class: where an artifact can stand in for its base."""

from __future__ import annotations

from typing import Any

from transformers.models.auto import auto_factory, configuration_auto, modeling_auto


def auto_classes(model: type, model_type: str) -> tuple[str, ...]:
    """Names of the Auto classes that build a model class: one of transformers', or one that a program registered."""
    return tuple(
        sorted(
            auto
            for auto, found in vars(modeling_auto).items()
            if isinstance(found, type)
            and issubclass(found, auto_factory._BaseAutoModelClass)
            and (_is_listed(found, model, model_type) or model in _registered(found, model_type))
        )
    )


def model_types() -> tuple[str, ...]:
    """Every model type that a config can name."""
    return tuple(configuration_auto.CONFIG_MAPPING)


def offers(auto: Any, model_type: str) -> bool:
    """Whether an Auto class builds a model of this type."""
    return bool(_listed(auto, model_type) or _registered(auto, model_type))


def _is_listed(auto: type[auto_factory._BaseAutoModelClass], model: type, model_type: str) -> bool:
    return model.__module__.startswith("transformers.") and model.__name__ in _listed(auto, model_type)


def _listed(auto: type[auto_factory._BaseAutoModelClass], model_type: str) -> tuple[str, ...]:
    names = auto._model_mapping._model_mapping.get(model_type, ()) if auto._model_mapping is not None else ()
    return (names,) if isinstance(names, str) else tuple(names)


def _registered(auto: type[auto_factory._BaseAutoModelClass], model_type: str) -> tuple[type, ...]:
    """What a program told an Auto class to build."""
    own: dict[Any, type] = auto._model_mapping._extra_content if auto._model_mapping is not None else {}
    known = ((config.model_type, model) for config, model in own.items())
    return tuple(model for kind, model in known if kind == model_type)
