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

IGNORED = -1
"""Class number of voxels that nobody decided on (nnU-Net's ignore label): no loss, no score."""

_STRANGE = -2
"""Instead of a class number, where a value has none."""

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
        region: Values of reference label maps that together make it up, where that is not its own value alone
            (nnU-Net's regions: "whole tumour" of oedema and core). Empty: its value alone.
    """

    name: str
    value: int
    side: Side | None = None
    mirror: str | None = None
    tolerance_mm: float = DEFAULT_TOLERANCE_MM
    color: str = PALETTE[0]
    code: str | None = None
    region: tuple[int, ...] = ()

    @property
    def reference_values(self) -> tuple[int, ...]:
        """Values of reference label maps that belong to it."""
        return self.region or (self.value,)


@dataclass(frozen=True)
class LabelSchema:
    """All structures of a dataset, in the order of the network's channels 1, 2, …; channel 0 is background.

    A reference label map holds *classes*: the values that voxels may have. Where structures are regions that overlap,
    a voxel of one class belongs to several structures (:attr:`membership`); else classes and channels are the same.
    Predictions are written with each structure's own value, the later one where several claim a voxel.

    Attributes:
        structures: Without background, whose value is always 0.
        ignore_value: Voxels of this value in a reference are undecided: no loss, no score. None where there is none.
        priority: Names, highest first: who keeps a voxel that several contours of a DICOM SEG or RTSTRUCT claim. Empty:
            overlapping contours are refused.
    """

    structures: tuple[Structure, ...]
    ignore_value: int | None = None
    priority: tuple[str, ...] = ()

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
        if self.ignore_value is not None and (self.ignore_value < 1 or self.ignore_value in self.class_values):
            raise ConfigError(f"the ignore label must be positive and no structure's, found {self.ignore_value}")
        if strange := sorted(set(self.priority) - set(names)):
            raise ConfigError(f"the priority names {strange}, which are no structures")
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
    def has_regions(self) -> bool:
        """Whether a voxel may belong to several structures."""
        return any(structure.reference_values != (structure.value,) for structure in self.structures)

    @cached_property
    def class_values(self) -> Integer[np.ndarray, " classes"]:
        """Values that reference label maps may hold, without the ignore label; class 0 is background.

        In the order of the structures; where there are regions, ascending.
        """
        if not self.has_regions:
            return self.values
        values = {value for structure in self.structures for value in structure.reference_values}
        return np.array([0, *sorted(values)], dtype=np.int64)

    @cached_property
    def membership(self) -> Bool[np.ndarray, "classes channels"]:
        """Whether a voxel of a class belongs to a channel; the identity without regions."""
        belongs = np.zeros((len(self.class_values), self.num_channels), dtype=bool)
        for channel, structure in enumerate(self.structures, start=1):
            belongs[:, channel] = np.isin(self.class_values, structure.reference_values)
        belongs[:, 0] = ~belongs.any(axis=1)
        return belongs

    @cached_property
    def mirrored_channels(self) -> tuple[int, ...]:
        """Channel order after the patient is mirrored left to right; a structure without counterpart stays itself."""
        index = {structure.name: channel for channel, structure in enumerate(self.structures, start=1)}
        return (0, *(index[s.mirror] if s.mirror else index[s.name] for s in self.structures))

    @cached_property
    def mirrored_classes(self) -> tuple[int, ...]:
        """What each class becomes when the patient is mirrored left to right; :attr:`mirrored_channels` without regions.

        It is the class that belongs to the mirrored structures; :data:`IGNORED` where there is none.
        """
        if not self.has_regions:
            return self.mirrored_channels
        turned = self.membership[:, self.mirrored_channels]
        fits = (turned[:, None] == self.membership[None]).all(axis=2)
        return tuple(np.where(fits.any(axis=1), fits.argmax(axis=1), IGNORED).tolist())

    @cached_property
    def counts_as(self) -> Bool[np.ndarray, "channels channels"]:
        """``counts_as[written, channel]``: whether a voxel predicted as one channel belongs to another too.

        A voxel carries one value, that of the innermost region; it counts for every region that holds this value. The
        identity without regions.
        """
        counts = np.eye(self.num_channels, dtype=bool)
        for channel, structure in enumerate(self.structures, start=1):
            counts[1:, channel] |= np.isin(self.values[1:], structure.reference_values)
        return counts

    def label_dtype(self) -> np.dtype[np.unsignedinteger]:
        """The smallest unsigned type that holds every value."""
        return np.dtype(np.uint8 if self.values.max() < 256 else np.uint16)

    def to_classes(self, array: Integer[np.ndarray, "*axes"]) -> Integer[np.ndarray, "*axes"]:
        """Values of a reference label map to class numbers (int16), :data:`IGNORED` where they are to be ignored.

        Raises:
            LabelError: A value is not in the schema.
        """
        table = self._class_of_value
        classes = np.empty_like(array, dtype=np.int16)
        # Plane by plane: an index into the table takes eight bytes, whatever the type of the array.
        for plane, target in zip(_planes(array), _planes(classes), strict=True):
            index = plane.astype(np.intp)
            np.clip(index, -1, len(table) - 1, out=index)  # what is too small or too large meets the last entry
            target[...] = table[index]
            if (target == _STRANGE).any():
                raise self._strange_values(array)
        return classes

    @cached_property
    def _class_of_value(self) -> Integer[np.ndarray, " values"]:
        """By value, and one more entry for all others."""
        values, numbers = self.class_values, np.arange(len(self.class_values), dtype=np.int16)
        if self.ignore_value is not None:
            values, numbers = np.append(values, self.ignore_value), np.append(numbers, np.int16(IGNORED))
        table = np.full(int(values.max()) + 2, _STRANGE, np.int16)
        table[values] = numbers
        return table

    def _strange_values(self, array: Integer[np.ndarray, "*axes"]) -> LabelError:
        known = np.flatnonzero(self._class_of_value != _STRANGE)
        found = np.setdiff1d(array, known)[:5].tolist()
        return LabelError(
            f"expected the label values {known.tolist()}, found also {found}: correct the label map or the dataset's labels",
            code="label.value",
        )

    def to_values(self, channels: Integer[np.ndarray, "*axes"]) -> Integer[np.ndarray, "*axes"]:
        """Channel numbers to label values, in :meth:`label_dtype`."""
        table = self.values.astype(self.label_dtype())
        values = np.empty_like(channels, dtype=table.dtype)
        for plane, target in zip(_planes(channels), _planes(values), strict=True):  # as in to_classes
            target[...] = table[plane]
        return values

    def to_channels(self, array: Integer[np.ndarray, "*axes"]) -> Integer[np.ndarray, "*axes"]:
        """Values of a prediction back to channel numbers (int16): undoes :meth:`to_values`. Other values are background."""
        table = np.zeros(int(self.values.max()) + 2, np.int16)
        table[self.values] = np.arange(self.num_channels, dtype=np.int16)
        channels: np.ndarray = table.take(array, mode="clip")
        return channels

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


def _planes(array: np.ndarray) -> np.ndarray:
    """Views of an array along its last axis, in whose planes files lie; one of the whole where there are no planes."""
    return np.moveaxis(array, -1, 0) if array.ndim > 1 else array.reshape(1, -1)


def innermost(belongs: Bool[np.ndarray, "numbers structures"], wanted: Bool[np.ndarray, " structures"]) -> int:
    """The channel number that counts for most of the wanted structures, and for no other; background where none does.

    Args:
        belongs: Whether a voxel of each channel number belongs to each structure; the first number is background.
        wanted: The structures that a voxel shall belong to.
    """
    fits = np.flatnonzero(~(belongs & ~wanted).any(axis=1))
    return max(fits.tolist(), key=lambda number: (belongs[number].sum(), number))


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
