"""The base of all configs, and how their mistakes are told: all at once, with dotted paths and the nearest right name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from medseg.core.errors import ConfigError


class ConfigBase(BaseModel):
    """A frozen config: unknown keys are mistakes, and every field is documented where it stands."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True)


Config = TypeVar("Config", bound=ConfigBase)


def validated(config_type: type[Config], values: Mapping[str, Any], source: str) -> Config:
    """Build a config from plain values.

    Args:
        config_type: What to build.
        values: As read from YAML, overrides applied.
        source: Where the values come from, for the message.

    Raises:
        ConfigError: With every mistake in one message, each with its dotted path.
    """
    try:
        return config_type.model_validate(values)
    except ValidationError as error:
        lines = [_sentence(config_type, details) for details in error.errors()]
        count = "1 mistake" if len(lines) == 1 else f"{len(lines)} mistakes"
        raise ConfigError(f"{source}: {count} in the config\n" + "\n".join(f"  {line}" for line in lines)) from None


def _sentence(config_type: type[BaseModel], details: Any) -> str:
    path = _written_path(config_type, details["loc"])
    if details["type"] == "extra_forbidden":
        known = _fields_at(config_type, details["loc"][:-1])
        near = difflib.get_close_matches(str(details["loc"][-1]), known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(sorted(known))}"
        return f"{path}: unknown key; {hint}"
    if details["type"] == "union_tag_invalid":
        context = details["ctx"]
        return f"{path}.kind: expected one of {context['expected_tags']}, found '{context['tag']}'"
    if details["type"] == "union_tag_not_found":
        return f"{path}: needs a key 'kind' that says which variant is meant"
    if details["type"] == "missing":
        return f"{path}: missing; give it a value"
    message = details["msg"].removeprefix("Value error, ")
    found = details.get("input")
    shown = "" if isinstance(found, Mapping | BaseModel) or len(repr(found)) > 60 else f", found {found!r}"
    return f"{path or 'config'}: {message}{shown}"


def _models_of(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_of(part)]


def _kind_of(model: type[BaseModel]) -> Any:
    field = model.model_fields.get("kind")
    return field.default if field else None


def _step(models: Sequence[type[BaseModel]], part: Any) -> list[type[BaseModel]]:
    """The models one key further down; a discriminator's tag, which pydantic puts into paths, picks a variant."""
    tagged = [model for model in models if _kind_of(model) == part]
    if tagged:
        return tagged
    return [
        below
        for model in models
        if part in model.model_fields
        for below in _models_of(model.model_fields[part].annotation)
    ]


def _written_path(config_type: type[BaseModel], location: Sequence[Any]) -> str:
    """The path as the user wrote it: without the tags of unions."""
    models, written = [config_type], []
    for part in location:
        is_tag = any(_kind_of(model) == part for model in models) and len(models) > 1
        if not is_tag:
            written.append(str(part))
        models = _step(models, part) or models
    return ".".join(written)


def _fields_at(config_type: type[BaseModel], location: Sequence[Any]) -> list[str]:
    models = [config_type]
    for part in location:
        models = _step(models, part) or models
    return sorted({name for model in models for name in model.model_fields})
