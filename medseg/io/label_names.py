"""Structures as JSON spells them: ``{"background": 0, "Liver": 1, "Kidney left": {"value": 2, …}, "ignore": 255}``."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from medseg.core.errors import ConfigError
from medseg.core.labels import PALETTE, LabelSchema, Structure, mirrored_name, side_of
from medseg.core.units import DEFAULT_TOLERANCE_MM
from medseg.io.volume import MAX_LABEL

BACKGROUND, IGNORE = "background", "ignore"
"""Names that are no structures: value 0, and the label of voxels that nobody decided on, as nnU-Net calls it."""

LABEL_KEYS = ("value", "side", "mirror", "tolerance_mm", "color", "code", "region")


def labels_of(names: Any) -> LabelSchema:
    """The schema of ``{"background": 0, "Liver": 1, "Kidney left": {"value": 2, "side": "left", ...}}``.

    Side and mirror are read off the name where they are not given; ``"mirror": null`` says that there is none. The
    name ``ignore`` stands for the ignore label.

    Raises:
        ConfigError: With every mistake in one message.
    """
    schema, mistakes = labels_and_mistakes(names)
    if schema is None:
        raise ConfigError("the labels are not as they should be\n" + "\n".join(f"  {line}" for line in mistakes))
    return schema


def label_entries(schema: LabelSchema) -> dict[str, Any]:
    """The JSON of a schema: the way back of :func:`labels_of`, but for the priority, which is no label."""
    entries: dict[str, Any] = {BACKGROUND: 0}
    for structure in schema.structures:
        entry = {key: value for key, value in asdict(structure).items() if key != "name" and value not in (None, ())}
        if structure.region:
            entry["region"] = list(structure.region)
        # None has to be said where the name would tell something else.
        if structure.side is None and side_of(structure.name) is not None:
            entry["side"] = None
        if structure.mirror is None and mirrored_name(structure.name, schema.names) is not None:
            entry["mirror"] = None
        entries[structure.name] = entry
    return entries if schema.ignore_value is None else {**entries, IGNORE: schema.ignore_value}


def labels_and_mistakes(
    names: Any, ignore: Any = None, priority: Any = None, key: str = "labels"
) -> tuple[LabelSchema | None, list[str]]:
    """The schema, or None and what is wrong with it.

    Args:
        names: As :func:`labels_of` takes them.
        ignore: The ignore label, where it stands beside the names.
        priority: Names, highest first.
        key: Of the names in their description.
    """
    if not isinstance(names, Mapping):
        return None, [f"{key}: expected an object of names and values, found {names!r}"[:300]]
    entries = {name: dict(entry) if isinstance(entry, Mapping) else {"value": entry} for name, entry in names.items()}
    background, told = entries.pop(BACKGROUND, {"value": 0}), entries.pop(IGNORE, {"value": None})
    mistakes = []
    if background != {"value": 0} or background["value"] is False:
        mistakes.append(f"{key}.{BACKGROUND}: expected 0, found {names[BACKGROUND]!r}")
    mistakes += _ignore_mistakes([value for value in (ignore, *told.values()) if value is not None])
    if priority is not None and not (isinstance(priority, list) and all(isinstance(name, str) for name in priority)):
        mistakes.append(f"priority: expected a list of names, highest first, found {priority!r}"[:300])
    for name, entry in entries.items():
        mistakes += [f"{key}.{name[:40]}{mistake}" for mistake in _label_mistakes(name, entry)]
    mirrors = {} if mistakes else _mirrors(entries)
    for name, mirror in mirrors.items():
        if mirror is not None and mirrors.get(mirror) != name:
            mistakes.append(f"{key}.{name}.mirror: expected a structure that is mirrored back to it, found {mirror!r}")
    if mistakes:
        return None, mistakes
    structures = tuple(_structure(name, entry, mirrors[name], n) for n, (name, entry) in enumerate(entries.items()))
    try:
        return LabelSchema(structures, ignore if told["value"] is None else told["value"], tuple(priority or ())), []
    except ConfigError as error:
        return None, [f"{key}: {error.message}"]


def is_label_value(value: Any) -> bool:
    """Whether something can be the value of a structure in a label map."""
    return type(value) is int and 0 < value <= MAX_LABEL


def _ignore_mistakes(values: list[Any]) -> Iterator[str]:
    """``values``: what the description says of it, here and there."""
    for value in values:
        if not is_label_value(value):
            yield f"{IGNORE}: expected an integer from 1 to {MAX_LABEL}, found {value!r}"
    if len(values) == 2 and values[0] != values[1]:
        yield f"{IGNORE}: {values[0]} beside the labels, {values[1]} among them"


def _label_mistakes(name: str, entry: Mapping[str, Any]) -> list[str]:
    value, tolerance_mm = entry.get("value"), entry.get("tolerance_mm", DEFAULT_TOLERANCE_MM)
    is_tolerance = type(tolerance_mm) in (int, float) and math.isfinite(tolerance_mm) and tolerance_mm > 0
    color, text_or_null = entry.get("color", PALETTE[0]), [entry.get("mirror"), entry.get("code")]
    region = entry.get("region", [value])
    is_region = isinstance(region, list) and all(map(is_label_value, region)) and 0 < len(region) == len(set(region))
    checks = {
        ": a name is one line of text": bool(name.strip()) and name.isprintable(),
        f": expected an integer from 1 to {MAX_LABEL}, found {value!r}": is_label_value(value),
        f": unknown keys {sorted(set(entry) - set(LABEL_KEYS))}": set(entry) <= set(LABEL_KEYS),
        ".side: expected left or right": entry.get("side") in (None, "left", "right"),
        f".tolerance_mm: expected a positive number, found {tolerance_mm!r}": is_tolerance,
        f".color: expected #rrggbb, found {color!r}": isinstance(color, str)
        and re.fullmatch("#[0-9a-fA-F]{6}", color) is not None,
        ": mirror and code are texts": all(text is None or isinstance(text, str) for text in text_or_null),
        f".region: expected a list of distinct label values, found {region!r}": is_region or "region" not in entry,
    }
    return [mistake for mistake, holds in checks.items() if not holds]


def _mirrors(entries: Mapping[str, Mapping[str, Any]]) -> dict[str, str | None]:
    """The counterpart of each structure; one that only the other side names counts for both."""
    mirrors: dict[str, str | None] = {
        name: entry["mirror"] if "mirror" in entry else mirrored_name(name, entries) for name, entry in entries.items()
    }
    for name, mirror in list(mirrors.items()):
        if mirror is not None and mirror in entries and mirrors[mirror] is None and "mirror" not in entries[mirror]:
            mirrors[mirror] = name
    return mirrors


def _structure(name: str, entry: Mapping[str, Any], mirror: str | None, number: int) -> Structure:
    return Structure(
        name,
        entry["value"],
        side=entry.get("side", side_of(name)),
        mirror=mirror,
        tolerance_mm=float(entry.get("tolerance_mm", DEFAULT_TOLERANCE_MM)),
        color=entry.get("color", PALETTE[number % len(PALETTE)]),
        code=entry.get("code"),
        region=tuple(entry.get("region", ())),
    )
