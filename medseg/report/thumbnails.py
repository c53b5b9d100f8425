"""What a check found, as one HTML page with a small picture of each place. It carries its pictures and needs no network.

Everything that comes from names of files, cases and structures is escaped.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from itertools import groupby
from pathlib import Path

import numpy as np
from jaxtyping import Integer, Shaped, UInt8

from medseg.core.case import CaseRecord, Dataset
from medseg.core.errors import CaseError
from medseg.core.findings import Finding
from medseg.core.geometry import Geometry
from medseg.core.labels import LabelSchema
from medseg.core.shapes import IJK
from medseg.core.version import VERSION
from medseg.io.atomic import write_text_atomically
from medseg.io.volume import is_dicom, read_label_map, read_volume
from medseg.report.html import page_head
from medseg.report.planes import CONVENTION, PLANES, Plane

MAX_PICTURES = 100
"""A page with more would neither load nor be read."""

PICTURE_PIXELS = 240
"""Edge of the square that a plane is shown in."""

GAP_PIXELS = 4

SHOWN_PERCENTILES = (1.0, 99.5)
"""Shown black and white: whatever scale the values have."""

OTHER_COLOUR = (110, 150, 190)
"""Of structures that the finding is not about."""

THUMBNAIL_STYLE = """
section { break-inside: avoid; border-bottom: 1px solid #e3e7eb; padding: .6em 0; } section img { image-rendering: auto; }
section p { margin: .2em 0; } .error { color: #a3231b; font-weight: 600; } .warning { color: #8a5a00; font-weight: 600; }
"""


def write_findings_page(path: Path, findings: Sequence[Finding], dataset: Dataset) -> None:
    """Write the page; the cases are read again, one at a time, for their pictures.

    Args:
        path: HTML file to write.
        findings: Of one case together.
        dataset: That was checked.
    """
    num_errors = sum(finding.level == "error" for finding in findings)
    title = f"Check of {dataset.name}"
    lead = f"{len(dataset.cases)} cases; errors: {num_errors}, warnings: {len(findings) - num_errors}. {CONVENTION.capitalize()}."
    head = page_head(title, lead, THUMBNAIL_STYLE)
    records = {record.id: record for record in dataset.cases}
    sections = [
        _section(case, list(group), records.get(case or ""), dataset, number < MAX_PICTURES)
        for number, (case, group) in enumerate(groupby(findings, key=lambda finding: finding.case))
    ]
    foot = f"<footer>Made by medseg {escape(VERSION)}. The same as data: findings.json.</footer></body></html>\n"
    write_text_atomically(path, "\n".join([head, *(sections or ["<p>Nothing was found.</p>"]), foot]), overwrite=True)


def _section(
    case: str | None, findings: Sequence[Finding], record: CaseRecord | None, dataset: Dataset, with_picture: bool
) -> str:
    told = "\n".join(
        f'<p><span class="{finding.level}">{finding.level}</span> <b>{escape(finding.code)}</b> '
        f"{escape(finding.file or '')}: {escape(finding.message)}. <small>{escape(finding.remedy)}</small></p>"
        for finding in findings
    )
    picture = _picture(findings, record, dataset) if record is not None and with_picture else ""
    return f"<section><h3>{escape(case or dataset.name)}</h3>\n{told}\n{picture}</section>"


def _picture(findings: Sequence[Finding], record: CaseRecord, dataset: Dataset) -> str:
    """Three planes through what was found; nothing where the image cannot be read."""
    from PIL import Image

    shown = _image_of(findings, record, dataset)
    if shown is None:
        return ""
    image, grid = shown
    names = {name for finding in findings for name in finding.structures}
    labels = _labels_on(grid, record, dataset)
    pixels = draw_planes(grid.axes.to_canonical(image), grid.canonical, labels, dataset.labels, names)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG", optimize=True)
    data = base64.b64encode(stream.getvalue()).decode("ascii")
    return f'<img alt="{escape(record.id)}" src="data:image/png;base64,{data}">'


def _image_of(
    findings: Sequence[Finding], record: CaseRecord, dataset: Dataset
) -> tuple[Shaped[np.ndarray, IJK], Geometry] | None:
    """The channel that a finding is about, else the first that can be read."""
    files = [finding.file or "" for finding in findings]
    about = [path for path in record.images if any(str(path).endswith(file) for file in files)]
    num_channels = len(dataset.channels) if len(record.images) == 1 else 1
    for path in [*about, *record.images]:
        try:
            volume = read_volume(path, num_channels=num_channels, allow=("read.nonfinite",))
        except CaseError:
            continue
        return volume.array[0], volume.geometry
    return None


def _labels_on(grid: Geometry, record: CaseRecord, dataset: Dataset) -> Integer[np.ndarray, IJK] | None:
    """The label map, axes in R, A, S order, where it fits the image."""
    if record.label is None:
        return None
    try:
        if is_dicom(record.label):
            from medseg.io.dicom_labels import read_dicom_labels

            label = read_dicom_labels(record.label, grid, dataset.labels)
        else:
            label = read_label_map(record.label)
    except CaseError:
        return None
    return grid.axes.to_canonical(label.array) if label.geometry.shape_ijk == grid.shape_ijk else None


def draw_planes(
    image: Shaped[np.ndarray, IJK],
    grid: Geometry,
    labels: Integer[np.ndarray, IJK] | None,
    schema: LabelSchema,
    names: set[str],
) -> UInt8[np.ndarray, "rows columns 3"]:
    """Axial, coronal and sagittal plane beside each other, with outlines.

    Args:
        image: One channel, axes in R, A, S order.
        grid: Its grid, canonical.
        labels: On the same grid.
        schema: The structures.
        names: Structures to go through and to show in their colours; empty: all.
    """
    low, high = np.percentile(
        image[tuple(slice(None, None, max(1, size // 128)) for size in image.shape)], SHOWN_PERCENTILES
    )
    scale = 255.0 / max(float(high - low), 1e-6)
    marked = [s for s in schema.structures if not names or s.name in names]
    centre = _centre(labels, [value for s in marked for value in s.reference_values], image.shape)
    colours = np.full((int(max(schema.class_values.max(), 0 if labels is None else labels.max())) + 1, 3), OTHER_COLOUR)
    for structure in marked:
        colours[list(structure.reference_values)] = [int(structure.color[at : at + 2], 16) for at in (1, 3, 5)]
    panels = []
    for plane in PLANES:
        rows, columns = _sampling(plane, grid)
        grey = (plane.slice_of(image, centre[plane.across])[np.ix_(rows, columns)].astype(np.float32) - low) * scale
        panel = np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[..., None], 3, axis=2)
        if labels is not None:
            values = plane.slice_of(labels, centre[plane.across])[np.ix_(rows, columns)]
            panel[_is_outline(values)] = colours[values[_is_outline(values)]]
        panels.append(_framed(panel))
    return np.concatenate(panels, axis=1)


def _centre(labels: Integer[np.ndarray, IJK] | None, values: Sequence[int], shape: tuple[int, ...]) -> tuple[int, ...]:
    """The slice of each axis that holds most of these values; the middle where there is none."""
    if labels is None:
        return tuple(size // 2 for size in shape)
    lookup = np.zeros(int(max(labels.max(), *values)) + 1, bool)
    lookup[list(values)] = True
    is_marked = lookup[labels]
    if not is_marked.any():
        return tuple(size // 2 for size in shape)
    sums = [is_marked.sum(axis=tuple(other for other in range(3) if other != axis)) for axis in range(3)]
    return tuple(int(np.argmax(sizes)) for sizes in sums)


def _sampling(plane: Plane, grid: Geometry) -> tuple[np.ndarray, np.ndarray]:
    """Which rows and columns of a slice the pixels show: true proportions, head up, seen from the feet or the front."""
    across, up = (grid.shape_ijk[axis] * grid.spacing_ijk_mm[axis] for axis in plane.along)
    scale = PICTURE_PIXELS / max(across, up)
    rows, columns = (
        np.minimum(
            np.arange(max(1, round(length * scale))) / (length * scale) * grid.shape_ijk[axis], grid.shape_ijk[axis] - 1
        )
        for length, axis in ((up, plane.along[1]), (across, plane.along[0]))
    )
    return rows.astype(np.int64)[::-1], columns.astype(np.int64)[::-1]


def _is_outline(values: Integer[np.ndarray, "rows columns"]) -> np.ndarray:
    """Pixels of a structure next to another value."""
    padded = np.pad(values, 1, mode="edge")
    differs = np.zeros(values.shape, bool)
    for shifted in (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]):
        differs |= shifted != values
    return differs & (values > 0)


def _framed(panel: UInt8[np.ndarray, "rows columns 3"]) -> UInt8[np.ndarray, "edge edge 3"]:
    """In the middle of a black square."""
    edge = PICTURE_PIXELS + GAP_PIXELS
    framed = np.zeros((edge, edge, 3), np.uint8)
    top, left = ((edge - size) // 2 for size in panel.shape[:2])
    framed[top : top + panel.shape[0], left : left + panel.shape[1]] = panel
    return framed
