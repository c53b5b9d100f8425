"""One case of a dataset in another form: linked where the files can stay as they are, written where they cannot.

Whatever a form says differently than the dataset did (values of a label map, channels in one file) lies beside it as it
was, in ``originals``: what medseg reads back is the original.
"""

from __future__ import annotations

import glob
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medseg.core.case import Case, CaseRecord
from medseg.core.volume import TURNED, LabelMap, Note, Volume
from medseg.io.case import read_case
from medseg.io.conversion import ENDING, Conversion
from medseg.io.dataset_native import case_entry
from medseg.io.linking import link, pack
from medseg.io.nifti import SUFFIXES, write_label_map
from medseg.io.volume import MAX_LABEL
from medseg.io.volume_writer import is_written, write_volume

LINKABLE = (ENDING, ".nii", ".nrrd", ".mha")
"""Formats of a single file, which the native form takes as they are."""

ORIGINALS = "originals"

Place = Literal["Tr", "Ts", "aside"]
"""``aside``: of no use in this form, which cannot say that something is unknown."""


@dataclass(frozen=True)
class ConvertedCase:
    """A case in its new form.

    Attributes:
        record: The case as it was.
        name: Of its files.
        place: Where the form lists it.
        entry: What the native description of the new folder says of it.
        notes: What the readers met and dealt with.
    """

    record: CaseRecord
    name: str
    place: Place
    entry: dict[str, Any]
    notes: tuple[Note, ...]


@dataclass(frozen=True)
class Converter:
    """Converts case after case into a folder.

    Attributes:
        conversion: What it means.
        folder: The new dataset.
        manners: How many files were ``linked``, ``copied``, ``written``, or ``kept`` from an earlier run.
    """

    conversion: Conversion
    folder: Path
    manners: Counter[str] = field(default_factory=Counter)

    def convert(self, record: CaseRecord) -> ConvertedCase:
        """Convert a case; every file is read through the checked door first. A case that fails leaves no file behind.

        Raises:
            CaseError: The case cannot be read or written.
            ResourceError: The disk is full.
        """
        name = self.conversion.names[record.id]
        is_done = False
        try:
            case = read_case(record, self.conversion.dataset)
            convert = self._native if self.conversion.form == "native" else self._in_form
            place, files, more = convert(record, case, name)
            is_done = True
        finally:
            if not is_done:
                self._remove(name)
        notes = case.image.notes + (() if case.label is None else case.label.notes)
        return ConvertedCase(record, name, place, {**case_entry(files, self.folder), **more}, notes)

    def _native(self, record: CaseRecord, case: Case, name: str) -> tuple[Place, CaseRecord, dict[str, Any]]:
        return "Tr", self._as_it_was(record, case, self.folder / "images" / name, self.folder / "labels" / name), {}

    def _in_form(self, record: CaseRecord, case: Case, name: str) -> tuple[Place, CaseRecord, dict[str, Any]]:
        """The place of a case, its files as they are without loss, and what ties them to the form's."""
        original = self.folder / ORIGINALS
        place, translated = self._translated(record, case)
        more: dict[str, Any] = {"name": name, "place": place}
        if place == "aside":
            self._remove(name)  # an earlier run may have met another label
            files = self._as_it_was(record, case, original / f"{name}_image", original / f"{name}_label")
            return place, files, more
        images = self._images(record, case.image, name, place)
        label = None
        if case.label is not None and translated is None:
            label = self._label(record, case.label, original / f"{name}_label")
        elif case.label is not None and translated is not None:
            target = self.folder / f"labels{place}" / f"{name}{ENDING}"
            if np.array_equal(translated.array, case.label.array):
                is_turned = any(note.code == TURNED for note in case.label.notes)
                label = self._give_label(target, None if is_turned else record.label, translated)
            else:
                self._give_label(target, None, translated)
                label = self._label(record, case.label, original / f"{name}_label")
                file = target.relative_to(self.folder).as_posix()
                more["translated"] = {"file": file, "num_bytes": target.stat().st_size}
        return place, _with_files(record, images, label), more

    def _translated(self, record: CaseRecord, case: Case) -> tuple[Place, LabelMap | None]:
        """Where the form lists a case, and its label map there; None where it can have none."""
        if case.label is None:
            return "Ts", None
        planes = range(case.label.array.shape[2])  # indexing all at once would need eight bytes a voxel
        is_there = np.zeros(MAX_LABEL + 1, dtype=bool)
        for plane in planes:
            is_there[case.label.array[..., plane]] = True
        found = np.flatnonzero(is_there)
        undecided = np.isin(found, list(self.conversion.undecided(record)))
        is_sayable = not undecided.any() if self.conversion.ignore is None else not undecided.all()
        place: Place = "Ts" if record.split == "test" else "Tr" if is_sayable else "aside"
        if not is_sayable:
            return place, None
        table = self.conversion.table(record)
        array = np.empty_like(case.label.array, dtype=np.uint8 if table[found].max() < 256 else np.uint16)
        for plane in planes:
            array[..., plane] = table[case.label.array[..., plane]]
        return place, LabelMap(array, case.label.geometry, case.label.record)

    def _images(self, record: CaseRecord, image: Volume, name: str, place: Place) -> tuple[Path, ...]:
        """Write the form's images; returns the files that hold them without loss."""
        images, num_channels = self.folder / f"images{place}", len(image.array)
        has_own = len(record.images) == num_channels
        if self.conversion.form == "msd":
            targets = [images / f"{name}{ENDING}"]
            self._give_volume(targets[0], record.images[0] if len(record.images) == 1 else None, image)
        else:
            targets = [images / f"{name}_{channel:04d}{ENDING}" for channel in range(num_channels)]
            for channel, target in enumerate(targets):
                self._give_volume(target, record.images[channel] if has_own else None, _channel(image, channel))
        is_same = len(targets) == len(record.images) and all(p.name.lower().endswith(SUFFIXES) for p in record.images)
        if not is_same and all(path.name.lower().endswith(LINKABLE) for path in record.images):
            return self._as_it_was_images(record, image, self.folder / ORIGINALS / f"{name}_image")
        return tuple(targets)

    def _as_it_was(self, record: CaseRecord, case: Case, image: Path, label: Path) -> CaseRecord:
        """All files of a case without a change of meaning; ``image`` and ``label`` are names without ending."""
        images = self._as_it_was_images(record, case.image, image)
        return _with_files(record, images, None if case.label is None else self._label(record, case.label, label))

    def _as_it_was_images(self, record: CaseRecord, image: Volume, stem: Path) -> tuple[Path, ...]:
        targets = []
        for channel, path in enumerate(record.images):
            number = f"_{channel:04d}" if len(record.images) > 1 else ""
            targets.append(stem.with_name(f"{stem.name}{number}{_ending(path)}"))
            volume = image if len(record.images) == 1 else _channel(image, channel)
            self._give_volume(targets[-1], path, volume)
        return tuple(targets)

    def _label(self, record: CaseRecord, label: LabelMap, stem: Path) -> Path:
        assert record.label is not None
        target = stem.with_name(f"{stem.name}{_ending(record.label)}")
        return self._give_label(target, record.label, label)

    def _give_volume(self, target: Path, source: Path | None, volume: Volume) -> None:
        """The file ``target``, from ``source`` where that holds the same in the same format."""
        if self._is_taken_from(source, target):
            return
        is_there = target.exists() and is_written(target, volume)
        if not is_there:
            write_volume(target, volume, overwrite=True)
        self.manners["kept" if is_there else "written"] += 1

    def _give_label(self, target: Path, source: Path | None, label: LabelMap) -> Path:
        if self._is_taken_from(source, target):
            return target
        is_there = target.exists() and is_written(target, Volume(label.array[None], label.geometry))
        if not is_there:
            write_label_map(target, label, overwrite=True)
        self.manners["kept" if is_there else "written"] += 1
        return target

    def _is_taken_from(self, source: Path | None, target: Path) -> bool:
        if source is None or source.is_dir():
            return False
        ending = _ending(source)
        if target.name.endswith(ending) and source.name.lower().endswith(ending):
            self.manners[link(source, target)] += 1
        elif ending == ".nii" and target.name.endswith(ENDING):
            self.manners[pack(source, target)] += 1
        else:
            return False
        return True

    def _remove(self, name: str) -> None:
        """The form's files of a case that failed, so that nobody takes them for a whole case."""
        for folder in ("imagesTr", "imagesTs", "labelsTr", "labelsTs"):
            numbers = "" if self.conversion.form == "msd" or folder.startswith("labels") else "_[0-9][0-9][0-9][0-9]"
            for path in (self.folder / folder).glob(f"{glob.escape(name)}{numbers}{ENDING}"):
                path.unlink(missing_ok=True)


def _ending(path: Path) -> str:
    """Of a file that holds a source without a change: its own where that is a single file, else NIfTI's."""
    return next((ending for ending in LINKABLE if path.name.lower().endswith(ending)), ENDING)


def _channel(volume: Volume, number: int) -> Volume:
    return Volume(volume.array[number : number + 1], volume.geometry, volume.record)


def _with_files(record: CaseRecord, images: tuple[Path, ...], label: Path | None) -> CaseRecord:
    return CaseRecord(record.id, record.patient, images, label, record.annotated, record.split)
