"""YAML configs in and out, and the overrides of ``--set``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from medseg.core.errors import ConfigError
from medseg.io.atomic import write_text_atomically


class _Loader(yaml.SafeLoader):
    """Plain YAML in which a key that stands twice is a mistake and ``1e-3`` is a number.

    Aliases are refused: a config says everything where it stands, and a few lines of them unfold to terabytes.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        """As PyYAML's, without aliases."""
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]  # PyYAML's stubs leave it out
            raise yaml.MarkedYAMLError(problem="aliases (*name) are not taken: write the value out", problem_mark=mark)
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """Writes what :class:`_Loader` reads back."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key) for key, _ in node.value]
    twice = {str(key) for key in keys if keys.count(key) > 1}
    if twice:
        raise yaml.MarkedYAMLError(
            problem=f"the key {', '.join(sorted(twice))} stands twice", problem_mark=node.start_mark
        )
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)

# YAML 1.1, which PyYAML reads, takes 1e-3 for text because it has no point; YAML 1.2 and everybody else for a number.
_FLOAT = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$")
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a mapping from a YAML (or JSON) file.

    Raises:
        ConfigError: The file is missing, is not YAML, or is no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # some Windows editors write a byte order mark
    except FileNotFoundError:
        raise ConfigError(f"there is no file {path}: check the name") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path.name}: {error}") from error
    values = _parsed(text, path.name)
    if not isinstance(values, dict):
        raise ConfigError(f"expected keys and values in {path.name}, found {type(values).__name__}")
    return values


def write_yaml(path: Path, values: Mapping[str, Any]) -> None:
    """Write values so that :func:`read_yaml` gives them back."""
    text = yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    write_text_atomically(path, text, overwrite=True)


def apply_overrides(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Values with ``a.b=c`` applied; the right side is YAML, and a level that is missing or null is made.

    Raises:
        ConfigError: An override has no ``=``, or leads through something that has no keys.
    """
    result: dict[str, Any] = _copied(values)
    for override in overrides:
        path, separator, text = override.partition("=")
        keys = path.strip().split(".")
        if not separator or not all(keys):
            raise ConfigError(f"expected --set a.b=c, found '{override}'")
        value = _parsed(text, f"--set {override}")
        place = result
        for key in keys[:-1]:
            if place.get(key) is None:
                place[key] = {}
            place = place[key]
            if not isinstance(place, dict):
                raise ConfigError(f"--set {override}: '{key}' has no keys below it")
        place[keys[-1]] = value
    return result


def _parsed(text: str, source: str) -> Any:
    try:
        return _Loader(text).get_single_data()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" in line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{source} is not valid YAML{place}: {getattr(error, 'problem', error)}") from error
    except RecursionError:
        raise ConfigError(f"{source} is nested too deeply to be a config") from None
    except ValueError as error:  # such as the date 2001-02-30
        raise ConfigError(f"{source} is not valid YAML: {error}") from error


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    return value
