"""What converting a dataset to another form means: names, values of label maps, and what the form cannot say.

nnU-Net wants consecutive values, and the ignore label on top. A voxel of which nobody said all that the label map of
the new form would say of it becomes ``ignore`` there; where a form has no such label, the case cannot be said.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt16

from medseg.core.case import CaseRecord, Dataset
from medseg.core.errors import ConfigError
from medseg.core.labels import LabelSchema
from medseg.io.label_names import BACKGROUND, IGNORE, labels_of
from medseg.io.volume import MAX_LABEL

Form = Literal["native", "nnunet", "msd"]

ENDING = ".nii.gz"
"""Of every file that a form with fixed names holds."""

FORM_NAMES: Mapping[Form, str] = {"native": "the native form", "nnunet": "nnU-Net's form", "msd": "MSD's form"}


@dataclass(frozen=True)
class Conversion:
    """A dataset on its way into a form.

    Attributes:
        dataset: As it was read.
        form: To write.
    """

    dataset: Dataset
    form: Form

    @cached_property
    def names(self) -> dict[str, str]:
        """What files are called, by case: the id, but for characters and endings that other programs stumble over."""
        taken: set[str] = set()
        names = {}
        for case in self.dataset.cases:
            stem = re.sub(r"[^A-Za-z0-9_.-]", "_", case.id).lstrip(".-") or "case"
            stem += "_" if stem.endswith("_seg") else ""  # nnU-Net takes x_seg for the labels of x and leaves it out
            name, number = stem, 1
            while name.lower() in taken:  # names that differ in case only are one name on some file systems
                number += 1
                name = f"{stem}_{number}"
            taken.add(name.lower())
            names[case.id] = name
        return names

    @cached_property
    def values(self) -> dict[int, int]:
        """The form's value of each value in the dataset's label maps, the ignore label left out."""
        values = sorted(self.dataset.labels.class_values.tolist())
        return dict(zip(values, range(len(values)) if self.form == "nnunet" else values, strict=True))

    @cached_property
    def ignore(self) -> int | None:
        """The form's ignore label; None where it has none, or nothing is undecided."""
        if self.form != "nnunet":
            return None
        labelled = [case for case in self.dataset.cases if case.label is not None]
        is_needed = any(unknown_values(self.dataset.labels, case.annotated) for case in labelled)
        return len(self.values) if is_needed or self.dataset.labels.ignore_value is not None else None

    def undecided(self, record: CaseRecord) -> frozenset[int]:
        """Values of a case's label map that do not say all that the form's label map would say of them."""
        unknown, ignored = unknown_values(self.dataset.labels, record.annotated), self.dataset.labels.ignore_value
        return frozenset(unknown if ignored is None else unknown | {ignored})

    def table(self, record: CaseRecord) -> UInt16[np.ndarray, " values"]:
        """The form's value of every value that the label map of a case may hold."""
        table = np.arange(MAX_LABEL + 1, dtype=np.uint16)
        table[list(self.values)] = list(self.values.values())
        if self.ignore is not None:
            table[list(self.undecided(record))] = self.ignore
        return table

    def labels(self) -> dict[str, Any]:
        """The form's ``labels``, with what belongs to them.

        Raises:
            ConfigError: nnU-Net could not write a region, because its own value is none of the values it is made of.
        """
        if self.form == "msd":
            return {"labels": _names_by_value(self.dataset.labels)}
        structures = self.dataset.labels.structures
        regions = {s.name: [self.values[value] for value in s.reference_values] for s in structures}
        ignore = {} if self.ignore is None else {IGNORE: self.ignore}
        if all(len(region) == 1 for region in regions.values()):
            plain = {name: region[0] for name, region in regions.items()}
            return {"labels": {BACKGROUND: 0, **plain, **ignore}}
        for structure in structures:
            if structure.value not in structure.reference_values:
                raise ConfigError(
                    f"nnU-Net writes a region as one of its values: {structure.name} has the value {structure.value}, "
                    f"which is none of {list(structure.reference_values)}; give it one of them"
                )
        named = {name: region[0] if len(region) == 1 else region for name, region in regions.items()}
        order = [self.values[structure.value] for structure in structures]
        return {"labels": {BACKGROUND: 0, **named, **ignore}, "regions_class_order": order}

    def lost(self) -> list[str]:
        """What this dataset says and the form cannot, in words."""
        dataset, labels = self.dataset, self.dataset.labels
        plain = labels_of({structure.name: structure.value for structure in labels.structures})
        keys = {"side": "sides", "mirror": "mirrors", "tolerance_mm": "tolerances", "color": "colours", "code": "codes"}
        pairs = list(zip(labels.structures, plain.structures, strict=True))
        lost = [words for key, words in keys.items() if any(getattr(a, key) != getattr(b, key) for a, b in pairs)]
        checks = {
            "ids": any(name != case for case, name in self.names.items()),
            "patients": any(case.patient != case.id for case in dataset.cases),
            "splits": any(case.split not in (None, "test") for case in dataset.cases),
            "annotated": any(case.annotated is not None for case in dataset.cases),
            "the original label values": any(value != new for value, new in self.values.items()),
            "regions": self.form == "msd" and labels.has_regions,
            "the ignore label": self.form == "msd" and labels.ignore_value is not None,
            "the priority": bool(labels.priority),
        }
        return [words for words, is_lost in checks.items() if is_lost] + lost


def conversion_of(dataset: Dataset, form: Form) -> Conversion:
    """The conversion of a dataset.

    Raises:
        ConfigError: The form cannot hold it.
    """
    conversion = Conversion(dataset, form)
    if form != "native":
        conversion.labels()
    return conversion


def unknown_values(labels: LabelSchema, annotated: Collection[str] | None) -> set[int]:
    """Values of a partly annotated label map that leave open which structures a voxel belongs to.

    Those are the values that look like another one to who sees only the annotated structures: background, unless all are
    annotated; a structure that nobody looked for; of regions that nest, the outer without the inner.
    """
    membership = labels.membership[:, 1:]
    seen = membership[:, labels.annotated_channels(None if annotated is None else tuple(annotated))[1:]]
    looks_alike = (seen[:, None] == seen[None]).all(axis=2)
    is_alike = (membership[:, None] == membership[None]).all(axis=2)
    return set(labels.class_values[(looks_alike & ~is_alike).any(axis=1)].tolist())


def _names_by_value(labels: LabelSchema) -> dict[str, str]:
    """``{"0": "background", "1": "Liver"}``; a value of several regions is called by all of them."""
    names = {"0": BACKGROUND}
    for number in np.argsort(labels.class_values):
        value, channels = int(labels.class_values[number]), np.flatnonzero(labels.membership[number])
        if value != 0:
            name = " + ".join(labels.names[channel - 1] for channel in channels)
            names[str(value)] = f"{name} ({value})" if name in names.values() else name
    return names
