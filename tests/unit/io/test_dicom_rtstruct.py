"""Contours become the masks that they enclose: by analytic areas, on every orientation, whatever the file holds."""

from __future__ import annotations

import itertools
import random
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from medseg.core.errors import CaseError, LabelError, ReadError
from medseg.core.geometry import Geometry
from medseg.io.dicom_rtstruct import read_rtstruct

WriteRtstruct = Callable[..., Path]

CONTOUR_DATA = Tag("ContourData")

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
SHAPE, SPACING_MM = (40, 36, 12), (0.8, 1.1, 2.5)
OBLIQUE = ((0.9541666, -0.2080757, 0.2151061), (0.2785886, 0.880128, -0.3843997))

SIGNED_ORDERS = [
    (order, flips) for order in itertools.permutations(range(3)) for flips in itertools.product((False, True), repeat=3)
]


def base_geometry() -> Geometry:
    """A grid turned as that of a real oblique series."""
    row, column = (np.array(direction) / np.linalg.norm(direction) for direction in OBLIQUE)
    affine = np.eye(4)
    affine[:3, :3] = np.array([row, column, np.cross(row, column)]).T * SPACING_MM
    affine[:3, 3] = (-31.0, 12.0, 77.0)
    return Geometry(affine, SHAPE)


def turned(geometry: Geometry, order: Sequence[int], flips: Sequence[bool]) -> Geometry:
    """The same voxels in space, with the axes of the array in another order and direction."""
    turn = np.zeros((4, 4))
    turn[3, 3] = 1.0
    for new, (old, flip) in enumerate(zip(order, flips, strict=True)):
        turn[old, new] = -1.0 if flip else 1.0
        turn[old, 3] += geometry.shape_ijk[old] - 1 if flip else 0.0
    i, j, k = (geometry.shape_ijk[old] for old in order)
    return Geometry(geometry.affine_ras @ turn, (i, j, k))


def turned_array(array: np.ndarray, order: Sequence[int], flips: Sequence[bool]) -> np.ndarray:
    return array.transpose(order)[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]


def contour(points: Sequence[Sequence[float]], plane: float, geometry: Geometry | None = None) -> np.ndarray:
    """Points given in index coordinates (i, j) of a plane k, in LPS mm."""
    affine = (geometry or base_geometry()).affine_ras
    homogeneous = np.array([[i, j, plane, 1.0] for i, j in points])
    return (homogeneous @ affine.T @ LPS)[:, :3]


def rectangle(first: Sequence[float], last: Sequence[float]) -> list[tuple[float, float]]:
    """Around the voxels from first to last, its edges midway between voxel centres."""
    (i0, j0), (i1, j1) = (first[0] - 0.5, first[1] - 0.5), (last[0] + 0.5, last[1] + 0.5)
    return [(i0, j0), (i1, j0), (i1, j1), (i0, j1)]


OUTER, INNER = rectangle((5, 5), (24, 24)), rectangle((10, 10), (14, 19))
KEYHOLE = [*OUTER, OUTER[0], *INNER, INNER[0]]

SHAPES: dict[str, tuple[list[list[tuple[float, float]]], int]] = {
    "square": ([OUTER], 400),
    "hole": ([OUTER, INNER], 350),
    "hole, the other way round": ([INNER[::-1], OUTER], 350),
    "keyhole": ([KEYHOLE], 350),
    "two islands": ([rectangle((2, 3), (6, 9)), rectangle((20, 20), (29, 29))], 135),
    "island in a hole": ([OUTER, INNER, rectangle((12, 12), (12, 13))], 352),
    "duplicate": ([OUTER, OUTER], 400),
    "duplicate from another start, backwards": ([OUTER, [*OUTER[2:], *OUTER[:2]][::-1]], 400),
    "duplicate with more points": ([OUTER, [*OUTER[:1], (10.0, 4.5), *OUTER[1:]]], 400),
    "hole, everything three times": ([OUTER, INNER] * 3, 350),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_hold_the_voxels_that_their_outlines_enclose(write_rtstruct: WriteRtstruct, name: str) -> None:
    polygons, num_voxels = SHAPES[name]
    path = write_rtstruct([("Organ", [contour(points, 4) for points in polygons])])
    geometry = base_geometry()
    mask, notes = read_rtstruct(path).burn(1, geometry)
    assert mask.sum() == mask[:, :, 4].sum() == num_voxels
    expected = ["label.duplicate_contour"] if "duplicate" in name or "times" in name else []
    assert [note.code for note in notes] == expected
    for order, flips in SIGNED_ORDERS:  # the 24 turns, and their mirror images
        other = read_rtstruct(path).mask(1, turned(geometry, order, flips))
        np.testing.assert_array_equal(other, turned_array(mask, order, flips))


def test_a_disc_has_its_area(write_rtstruct: WriteRtstruct) -> None:
    geometry = Geometry.from_spacing((200, 200, 3), (0.5, 0.5, 3.0))
    angles = np.linspace(0, 2 * np.pi, 720, endpoint=False)
    radius_mm = 40.0
    points = [(100 + 2 * radius_mm * np.cos(a), 100 + 2 * radius_mm * np.sin(a)) for a in angles]
    ring = [(100 + radius_mm * np.cos(a), 100 + radius_mm * np.sin(a)) for a in angles]
    path = write_rtstruct([("Disc", [contour(points, 1, geometry), contour(ring, 1, geometry)])])
    area_mm2 = read_rtstruct(path).mask(1, geometry).sum() * 0.25
    assert area_mm2 == pytest.approx(np.pi * radius_mm**2 * 0.75, rel=2e-3)


@pytest.mark.parametrize("border", [10.0, 10.5, 10.25])
def test_neighbours_share_a_border_and_no_voxel(write_rtstruct: WriteRtstruct, border: float) -> None:
    """Also where their border runs through voxel centres, straight or slanted."""
    both = rectangle((3, 4), (30, 19))
    shared = [(border, 3.5), (border + 3, 10.0), (border + 3, 12.0), (border, 19.5)]
    left, right = [both[0], *shared, both[3]], [both[1], both[2], *shared[::-1]]
    path = write_rtstruct(
        [(name, [contour(points, 5)]) for name, points in zip("lrb", (left, right, both), strict=True)]
    )
    structures = read_rtstruct(path)
    for order, flips in SIGNED_ORDERS:
        geometry = turned(base_geometry(), order, flips)
        first, second, union = (structures.mask(number, geometry) for number in (1, 2, 3))
        assert not (first & second).any()
        np.testing.assert_array_equal(first | second, union)
        assert union.sum() == 28 * 16


def test_every_slice_takes_the_nearest_plane(write_rtstruct: WriteRtstruct) -> None:
    """Planes a little off the slices, finer than the slices, and midway between two of them."""
    small, large = rectangle((5, 5), (8, 8)), rectangle((5, 5), (14, 14))
    geometry = base_geometry()
    off = [contour(large, plane + 0.3) for plane in range(3, 7)]
    fine = [contour(small if step % 3 else large, 3 + step / 3) for step in range(10)]
    midway = [
        contour(large, plane + 0.5 + wobble) for plane, wobble in zip(range(3, 7), (1e-6, -1e-6) * 2, strict=True)
    ]
    structures = read_rtstruct(write_rtstruct([("off", off), ("fine", fine), ("midway", midway)], digits=6))
    profiles = [structures.mask(number, geometry).sum(axis=(0, 1)).tolist() for number in (1, 2, 3)]
    assert profiles[0] == profiles[1] == [0, 0, 0, 100, 100, 100, 100, 0, 0, 0, 0, 0]
    assert profiles[2] == [0, 0, 0, 0, 100, 100, 100, 100, 0, 0, 0, 0]


def test_slices_between_sparse_contours_are_interpolated(write_rtstruct: WriteRtstruct) -> None:
    geometry = base_geometry()
    sizes = {1: 4, 3: 8, 5: 12, 7: 16}
    sparse = [contour(rectangle((20 - s, 16 - s), (20 + s, 16 + s)), plane) for plane, s in sizes.items()]
    mask, notes = read_rtstruct(write_rtstruct([("Cone", sparse)])).burn(1, geometry)
    widths = mask[:, 16, :].sum(axis=0)
    assert [note.code for note in notes] == ["label.interpolated"]
    assert widths[[1, 3, 5, 7]].tolist() == [9, 17, 25, 33]
    assert all(widths[k - 1] < widths[k] < widths[k + 1] for k in (2, 4, 6))
    assert widths[0] == widths[8] == 0


def test_a_gap_in_dense_contours_stays_and_is_told(write_rtstruct: WriteRtstruct) -> None:
    contours = [contour(OUTER, plane) for plane in (1, 2, 3, 6, 7)]
    mask, notes = read_rtstruct(write_rtstruct([("Nodes", contours)])).burn(1, base_geometry())
    assert mask.any(axis=(0, 1)).nonzero()[0].tolist() == [1, 2, 3, 6, 7]
    assert [note.code for note in notes] == ["label.gap"]
    assert " 2 slices" in notes[0].message
    far = [contour(OUTER, plane) for plane in (1, 10)]  # 22 mm apart
    mask, notes = read_rtstruct(write_rtstruct([("Ends", far)])).burn(1, base_geometry())
    assert mask.any(axis=(0, 1)).nonzero()[0].tolist() == [1, 10]
    assert [note.code for note in notes] == ["label.gap"]


def test_what_leaves_the_grid_is_cut_and_told(write_rtstruct: WriteRtstruct) -> None:
    wide = rectangle((-20, 5), (9, 9))
    planes = (-3, -1, 0, 1, 12)
    mask, notes = read_rtstruct(write_rtstruct([("Arm", [contour(wide, plane) for plane in planes])])).burn(
        1, base_geometry()
    )
    assert mask.sum(axis=(0, 1)).tolist() == [50, 50] + [0] * 10
    assert "label.outside" in [note.code for note in notes]
    assert mask[:10, 5:10, :2].all()


def test_points_and_open_lines_are_left_out(write_rtstruct: WriteRtstruct) -> None:
    for kind in ("POINT", "OPEN_PLANAR", "OPEN_NONPLANAR"):
        path = write_rtstruct([("Marker", [contour(OUTER, 4)])], kind=kind)
        mask, notes = read_rtstruct(path).burn(1, base_geometry())
        assert not mask.any()
        assert [note.code for note in notes] == ["label.open_contour"]
    path = write_rtstruct([("Organ", [contour(OUTER, 4), contour(OUTER[:2], 5), contour(OUTER[:1], 6)]), ("Empty", [])])
    mask, notes = read_rtstruct(path).burn(1, base_geometry())
    assert mask.sum() == 400
    assert [note.code for note in notes] == ["label.degenerate"]
    assert not read_rtstruct(path).mask(2, base_geometry()).any()


def test_contours_in_other_planes_are_refused(write_rtstruct: WriteRtstruct) -> None:
    tilted = contour(OUTER, 4)
    tilted[:2, 2] += 8.0
    sagittal = contour(OUTER, 4)[:, [2, 0, 1]]
    for contours in ([tilted], [contour(OUTER, 4), sagittal]):
        with pytest.raises(LabelError, match="Organ") as error:
            read_rtstruct(write_rtstruct([("Organ", contours)])).mask(1, base_geometry())
        assert error.value.code == "label.contour_plane"


def damage_data(text: str | None, num_points: int | None = None) -> Callable[[Dataset], None]:
    def change(dataset: Dataset) -> None:
        item = dataset.ROIContourSequence[0].ContourSequence[0]
        if text is None:
            del item.ContourData
        else:  # past pydicom's checks
            value = text.encode() + b" " * (len(text) % 2)
            item[CONTOUR_DATA] = RawDataElement(CONTOUR_DATA, "DS", len(value), value, 0, False, True)
        if num_points is not None:
            item.NumberOfContourPoints = num_points

    return change


@pytest.mark.parametrize(
    ("text", "num_points"),
    [
        ("1\\2\\3\\4\\5", 1),
        ("1\\2\\NaN\\4\\5\\6\\7\\8\\9", 3),
        ("1\\2\\inf\\4\\5\\6\\7\\8\\9", 3),
        ("1\\2\\1e300\\4\\5\\6\\7\\8\\9", 3),
        ("1\\2\\x\\4\\5\\6\\7\\8\\9", 3),
        ("1\\2\\\\4\\5\\6\\7\\8\\9", 3),
        ("1\\2\\3\\4\\5\\6\\7\\8\\9", 4),
        (None, 4),
    ],
)
def test_coordinates_that_make_no_sense_are_refused(
    write_rtstruct: WriteRtstruct, text: str | None, num_points: int
) -> None:
    path = write_rtstruct([("Organ", [contour(OUTER, 4)])], change=damage_data(text, num_points))
    with pytest.raises(LabelError, match=r"structures\.dcm") as error:
        read_rtstruct(path)
    assert error.value.code == "label.contour_data"


def test_numbers_that_do_not_fit_are_refused(write_rtstruct: WriteRtstruct) -> None:
    def same(dataset: Dataset) -> None:
        dataset.StructureSetROISequence[1].ROINumber = 1

    def unknown(dataset: Dataset) -> None:
        dataset.ROIContourSequence[1].ReferencedROINumber = 9

    def without(dataset: Dataset) -> None:
        del dataset.ROIContourSequence

    for change in (same, unknown, without):
        path = write_rtstruct([("A", [contour(OUTER, 4)]), ("B", [contour(OUTER, 5)])], change=change)
        with pytest.raises(ReadError, match=r"structures\.dcm") as error:
            read_rtstruct(path)
        assert error.value.code == "dicom.damaged"


def test_no_cut_or_altered_file_is_believed_or_crashes(write_rtstruct: WriteRtstruct, tmp_path: Path) -> None:
    contours = [contour(OUTER, plane) for plane in range(6)]
    content = write_rtstruct([("A", contours), ("B", contours)]).read_bytes()
    damaged, whole = tmp_path / "damaged.dcm", read_rtstruct(tmp_path / "structures.dcm")
    dice = random.Random(7)
    for _ in range(80):
        damaged.write_bytes(content[: dice.randrange(len(content) - 1)])
        with pytest.raises(CaseError):
            read_rtstruct(damaged)
    num_read = 0
    for _ in range(150):
        altered = bytearray(content)
        for _ in range(dice.choice((1, 1, 4))):
            altered[dice.randrange(len(altered))] = dice.randrange(256)
        damaged.write_bytes(altered)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                num_read += read_rtstruct(damaged).rois[0].number == whole.rois[0].number
            except CaseError as error:
                assert "damaged.dcm" in error.message
    assert num_read > 0


def test_another_object_is_refused(sample: Path, shared_data: Path) -> None:
    for path in (next(sample.rglob("*.nii.gz")), shared_data / "dicom/dcmqi_segmentations/liver.dcm"):
        with pytest.raises(ReadError):
            read_rtstruct(path)
    with pytest.raises(ReadError) as error:
        read_rtstruct(sample / "nothing.dcm")
    assert error.value.code == "read.missing"
