"""Which number in a label map means what, and what somebody looked for in a case."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from jaxtyping import Bool, Integer

from medseg.core.errors import ConfigError, LabelError
from medseg.core.units import DEFAULT_TOLERANCE_MM

Side = Literal["left", "right"]

PALETTE = (
    "#e6194b", "#3cb44b", "#4363d8", "#f58231", "#ffe119", "#46f0f0", "#f032e6", "#bcf60c", "#fabebe", "#008080",
    "#e6beff", "#9a6324", "#800000", "#aaffc3", "#808000", "#ffd8b1", "#000075",
)  # fmt: skip
"""Colours told apart by eye, from S. Trubetskoy's "20 simple, distinct colors"; repeated where structures outnumber them."""


@dataclass(frozen=True)
class Structure:
    """Anything that is labelled: organ, tumour, vessel.

    Attributes:
        name: As the dataset spells it.
        value: Its integer in label maps, positive.
        side: ``left`` or ``right`` of the patient, where it has one.
        mirror: Name of its counterpart on the other side.
        tolerance_mm: Surface tolerance for NSD [mm].
        color: ``#rrggbb``.
        code: SNOMED CT code, where known.
    """

    name: str
    value: int
    side: Side | None = None
    mirror: str | None = None
    tolerance_mm: float = DEFAULT_TOLERANCE_MM
    color: str = PALETTE[0]
    code: str | None = None


@dataclass(frozen=True)
class LabelSchema:
    """All structures of a dataset, in the order of the network's channels 1, 2, …; channel 0 is background.

    Attributes:
        structures: Without background, whose value is always 0.
    """

    structures: tuple[Structure, ...]

    def __post_init__(self) -> None:
        names = [structure.name for structure in self.structures]
        values = [structure.value for structure in self.structures]
        if not names:
            raise ConfigError("the dataset names no structure: add at least one to its labels")
        if len(set(names)) < len(names) or len(set(values)) < len(values):
            raise ConfigError(
                f"labels must have distinct names and values, found {dict(zip(names, values, strict=True))}"
            )
        if min(values) < 1:
            raise ConfigError("label values must be positive integers; 0 is background")
        for structure in self.structures:
            if structure.mirror is not None and structure.mirror not in names:
                raise ConfigError(f"'{structure.name}' is mirrored to '{structure.mirror}', which is no structure")

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names in channel order, without background."""
        return tuple(structure.name for structure in self.structures)

    @property
    def num_channels(self) -> int:
        """Structures and background."""
        return len(self.structures) + 1

    @cached_property
    def values(self) -> Integer[np.ndarray, " classes"]:
        """``values[c]`` is what channel ``c`` is written as."""
        return np.array([0, *(structure.value for structure in self.structures)], dtype=np.int64)

    @cached_property
    def mirrored_channels(self) -> tuple[int, ...]:
        """Channel order after the patient is mirrored left to right; a structure without counterpart stays itself."""
        index = {structure.name: channel for channel, structure in enumerate(self.structures, start=1)}
        return (0, *(index[s.mirror] if s.mirror else index[s.name] for s in self.structures))

    def label_dtype(self) -> np.dtype[np.unsignedinteger]:
        """The smallest unsigned type that holds every value."""
        return np.dtype(np.uint8 if self.values.max() < 256 else np.uint16)

    def to_channels(self, array: Integer[np.ndarray, "*axes"]) -> Integer[np.ndarray, "*axes"]:
        """Label values to channel numbers (int16).

        Raises:
            LabelError: A value is not in the schema.
        """
        order = np.argsort(self.values)
        known = self.values[order]
        place = np.clip(np.searchsorted(known, array), 0, len(known) - 1)
        strange = known[place] != array
        if strange.any():
            found = sorted({int(value) for value in np.unique(array[strange])})[:5]
            raise LabelError(
                f"expected the label values {[int(v) for v in known]}, found also {found}: correct the label map or "
                "the dataset's labels",
                code="label.value",
            )
        channels: np.ndarray = order.astype(np.int16)[place]
        return channels

    def to_values(self, channels: Integer[np.ndarray, "*axes"]) -> Integer[np.ndarray, "*axes"]:
        """Channel numbers to label values, in :meth:`label_dtype`."""
        values: np.ndarray = self.values.astype(self.label_dtype())[channels]
        return values

    def annotated_channels(self, annotated: Sequence[str] | None) -> Bool[np.ndarray, " classes"]:
        """Which channels somebody annotated: background always; all where ``annotated`` is None.

        Raises:
            LabelError: A name is not in the schema.
        """
        if annotated is None:
            return np.ones(self.num_channels, dtype=bool)
        unknown = sorted(set(annotated) - set(self.names))
        if unknown:
            raise LabelError(f"annotated structures {unknown} are not among {list(self.names)}", code="label.name")
        return np.array([True, *(name in annotated for name in self.names)])


def mirrored_name(name: str, names: Iterable[str]) -> str | None:
    """The counterpart of a structure on the other side, found by its name ("Kidney left" → "Kidney right")."""
    swap = {"left": "right", "right": "left", "l": "r", "r": "l"}
    parts = re.split(r"([\s_\-.]+)", name)
    swapped = "".join(swap.get(part.lower(), part) for part in parts).lower()
    if swapped == name.lower():
        return None
    return next((other for other in names if other.lower() == swapped), None)


def side_of(name: str) -> Side | None:
    """The side that a structure's name tells."""
    parts = {part.lower() for part in re.split(r"[\s_\-.]+", name)}
    if parts & {"left", "l"}:
        return "left"
    return "right" if parts & {"right", "r"} else None
