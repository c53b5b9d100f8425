"""Starter configs: every field of a config with its value, and its docstring as the comment above it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

INDENT = "  "


def commented_yaml(config: BaseModel) -> str:
    """A config as YAML with comments; reading it back gives the same config."""
    title = (type(config).__doc__ or "").strip().splitlines()[0]
    return f"# {title}\n" + "\n".join(_lines(config, "")) + "\n"


def _lines(config: BaseModel, indent: str) -> list[str]:
    lines: list[str] = []
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if field.description:
            lines += [f"{indent}# {line}" for line in field.description.splitlines()]
        if isinstance(value, BaseModel):
            lines.append(f"{indent}{name}:")
            lines += _lines(value, indent + INDENT)
        else:
            lines.append(f"{indent}{name}: {_scalar(value)}")
    return lines


def _scalar(value: Any) -> str:
    """JSON is YAML; words go without quotes unless YAML would take them for something else, such as "off"."""
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, str) and value.replace("_", "").isalnum() and yaml.safe_load(value) == value:
        return value
    return json.dumps(value, ensure_ascii=False)
