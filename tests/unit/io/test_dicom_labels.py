"""Structures become one label map: found by name, overlaps decided only by what the dataset states, all else told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from medseg.core.errors import GeometryError, LabelError, ReadError
from medseg.core.geometry import Geometry
from medseg.core.labels import LabelSchema, Structure
from medseg.io.dicom_labels import read_dicom_labels
from medseg.io.dicom_seg import read_dicom_seg

WriteRtstruct = Callable[..., Path]

GEOMETRY = Geometry(np.diag([-1.0, -1.0, 2.0, 1.0]), (100, 80, 6))  # LPS: a point (x, y) lies at index (x, y)


def schema(*names: str, priority: Sequence[str] = (), values: Sequence[int] = ()) -> LabelSchema:
    numbers = values or range(1, len(names) + 1)
    structures = tuple(Structure(name, value) for name, value in zip(names, numbers, strict=True))
    return LabelSchema(structures, priority=tuple(priority))


def box(x0: float, x1: float, y0: float, y1: float, planes: Sequence[int] = (2, 3)) -> list[np.ndarray]:
    """Around the voxels x0 to x1 and y0 to y1, both included."""
    corners = [(x0 - 0.5, y0 - 0.5), (x1 + 0.5, y0 - 0.5), (x1 + 0.5, y1 + 0.5), (x0 - 0.5, y1 + 0.5)]
    return [np.array([(x, y, 2.0 * plane) for x, y in corners]) for plane in planes]


def codes(label_map: object) -> list[str]:
    return [note.code for note in label_map.notes]


def test_names_are_compared_loosely(write_rtstruct: WriteRtstruct) -> None:
    path = write_rtstruct(
        [("kidney-LEFT", box(10, 19, 10, 19)), ("LIVER ", box(40, 59, 10, 29)), ("Couch", box(1, 2, 1, 2))]
    )
    label = read_dicom_labels(path, GEOMETRY, schema("Kidney_left", "Liver", "Spleen", values=(7, 300, 2)))
    assert label.array.dtype == np.uint16
    assert dict(zip(*np.unique(label.array, return_counts=True), strict=True)) == {0: 47000, 7: 200, 300: 800}
    assert (label.array[10:20, 10:20, 2:4] == 7).all()
    assert label.geometry is GEOMETRY
    assert codes(label) == ["label.unknown_structure", "label.missing_structure"]
    assert "'Couch'" in label.notes[0].message
    assert "'Spleen'" in label.notes[1].message


def test_a_name_is_never_guessed(write_rtstruct: WriteRtstruct) -> None:
    path = write_rtstruct([("GTV 1", box(10, 19, 10, 19)), ("gtv1", box(40, 59, 10, 29))])
    with pytest.raises(LabelError, match="GTV 1") as error:
        read_dicom_labels(path, GEOMETRY, schema("GTV-1"))
    assert error.value.code == "label.name"
    assert read_dicom_labels(path, GEOMETRY, schema("gtv1")).array.sum() == 800
    both = read_dicom_labels(path, GEOMETRY, schema("gtv1", "GTV 1"))
    assert np.bincount(both.array.ravel()).tolist()[1:] == [800, 200]
    with pytest.raises(LabelError, match=r"'gtv1'") as error:
        read_dicom_labels(path, GEOMETRY, schema("Heart"))
    assert error.value.code == "label.name"


def test_structures_of_one_name_count_together(write_rtstruct: WriteRtstruct) -> None:
    path = write_rtstruct([("Node", box(10, 19, 10, 19)), ("Node", box(15, 24, 10, 19)), ("Node", [])])
    label = read_dicom_labels(path, GEOMETRY, schema("Node"))
    assert label.array.sum() == 300
    assert codes(label) == ["label.joined"]


OVERLAPPING = [("Lung", box(10, 49, 10, 49)), ("Tumour", box(40, 59, 20, 29)), ("Heart", box(70, 79, 10, 19))]


def test_an_overlap_needs_a_priority(write_rtstruct: WriteRtstruct) -> None:
    path = write_rtstruct(OVERLAPPING)
    with pytest.raises(LabelError, match="200 voxels") as error:
        read_dicom_labels(path, GEOMETRY, schema("Lung", "Tumour", "Heart"))
    assert error.value.code == "label.overlap"
    assert "'Lung'" in error.value.message
    assert "'Tumour'" in error.value.message
    with pytest.raises(LabelError):  # which says nothing of these two
        read_dicom_labels(path, GEOMETRY, schema("Lung", "Tumour", "Heart", priority=["Heart"]))


@pytest.mark.parametrize(
    ("priority", "winner"),
    [(["Tumour", "Lung"], "Tumour"), (["Lung", "Tumour"], "Lung"), (["Tumour"], "Tumour"), (["Lung"], "Lung")],
)
def test_the_priority_decides(write_rtstruct: WriteRtstruct, priority: list[str], winner: str) -> None:
    for names in (("Lung", "Tumour", "Heart"), ("Heart", "Tumour", "Lung")):
        labels = schema(*names, priority=priority)
        label = read_dicom_labels(write_rtstruct(OVERLAPPING), GEOMETRY, labels)
        counts = np.bincount(label.array.ravel(), minlength=4)
        expected = {"Lung": 3200, "Tumour": 400, "Heart": 200}
        loser = {"Lung": "Tumour", "Tumour": "Lung"}[winner]
        expected[loser] -= 200
        assert {name: counts[value] for value, name in enumerate(names, start=1)} == expected
        assert codes(label) == ["label.overlap"]
        assert f"go to '{winner}'" in label.notes[0].message


def test_borders_drawn_twice_may_share_a_little(write_rtstruct: WriteRtstruct) -> None:
    """Two halves of a disc with a common border, each with points of its own, all rounded to a tenth of a millimetre."""
    rng = np.random.default_rng(0)
    angles = np.linspace(0, np.pi, 90)
    arc = np.stack([50.25 + 30 * np.cos(angles), 40.1 + 30 * np.sin(angles)], axis=1)

    def half(sign: int) -> list[np.ndarray]:
        along = np.sort(rng.uniform(-30, 30, 60))
        border = np.stack([50.25 + along, np.full(60, 40.0)], axis=1) + rng.normal(0, 0.03, (60, 2))
        outer = arc * (1, sign) + (0, 0 if sign > 0 else 80.0)
        return [np.c_[np.concatenate([outer, border]), np.full(150, 2.0 * plane)] for plane in (2, 3)]

    path = write_rtstruct([("A", half(1)), ("B", half(-1))], digits=1)
    label = read_dicom_labels(path, GEOMETRY, schema("B", "A"))
    assert codes(label) == ["label.border"]
    assert "go to 'B'" in label.notes[0].message
    sizes = np.bincount(label.array.ravel())[1:]
    # Their border runs through a row of voxel centres, 61 on each slice, and each of these may go either way.
    assert sizes.sum() == pytest.approx(2 * np.pi * 900, rel=0.01)
    assert np.abs(sizes - np.pi * 900).max() <= 2 * 61


def test_masks_may_share_nothing(shared_data: Path) -> None:
    path = shared_data / "dicom/dcmqi_segmentations/partial_overlaps.dcm"
    segmentation = read_dicom_seg(path)
    names = list(segmentation.names.values())
    grid = segmentation.geometry
    with pytest.raises(LabelError) as error:
        read_dicom_labels(path, grid, schema(*names))
    assert error.value.code == "label.overlap"
    priority = ["PURPLE", "green", "ORANGE", "LIGHT_BLUE", "DARK_BLUE"]
    labels = LabelSchema(
        tuple(Structure(name, value) for value, name in enumerate(sorted(priority), start=1)), priority=tuple(priority)
    )
    label = read_dicom_labels(path, grid, labels)
    expected = np.zeros(grid.shape_ijk, dtype=np.uint8)
    numbers = {name.lower(): number for number, name in segmentation.names.items()}
    for name in reversed(priority):
        expected[segmentation.mask(numbers[name.lower()])] = sorted(priority).index(name) + 1
    np.testing.assert_array_equal(label.array, expected)
    assert len(np.unique(expected)) == 6
    assert set(codes(label)) == {"label.overlap"}
    alone = read_dicom_labels(path, grid, schema("GREEN", "LIGHT BLUE"))
    np.testing.assert_array_equal(alone.array == 1, segmentation.mask(1))


def test_what_lies_outside_the_image_is_refused(write_rtstruct: WriteRtstruct, shared_data: Path) -> None:
    away = Geometry(GEOMETRY.affine_ras + np.array([[0, 0, 0, 500.0]] + [[0] * 4] * 3), GEOMETRY.shape_ijk)
    path = write_rtstruct([("Liver", box(10, 19, 10, 19))])
    seg = shared_data / "dicom/dcmqi_segmentations/liver.dcm"
    own = read_dicom_seg(seg).geometry
    beside = own.affine_ras.copy()
    beside[0, 3] += 600 * own.spacing_ijk_mm[0]
    for file, grid in ((path, away), (seg, Geometry(beside, own.shape_ijk))):
        with pytest.raises(GeometryError, match="outside") as error:
            read_dicom_labels(file, grid, schema("Liver"))
        assert error.value.code == "geometry.label"


def test_an_empty_structure_stays_empty(write_rtstruct: WriteRtstruct) -> None:
    label = read_dicom_labels(write_rtstruct([("Liver", [])]), GEOMETRY, schema("Liver"))
    assert not label.array.any()


def test_other_files_are_refused(shared_data: Path) -> None:
    with pytest.raises(ReadError) as error:
        read_dicom_labels(shared_data / "dicom/dcmqi_segmentations/ct-3slice/01.dcm", GEOMETRY, schema("Liver"))
    assert error.value.code == "read.format"
    regions = LabelSchema((Structure("Whole", 1, region=(1, 2)), Structure("Core", 2)))
    with pytest.raises(LabelError) as refused:
        read_dicom_labels(shared_data / "dicom/dcmqi_segmentations/liver.dcm", GEOMETRY, regions)
    assert refused.value.code == "label.regions"
