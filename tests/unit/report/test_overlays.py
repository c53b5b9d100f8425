"""Pictures are looked at by people; what a program can check is where things lie, and that odd cases draw at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib import image as mpl_image

from medseg.core.geometry import Geometry
from medseg.core.labels import LabelSchema, Structure
from medseg.report.figures import MAX_BYTES, new_figure, write_png
from medseg.report.overlays import MAX_ROWS, SMALLEST_VIEW_MM, draw_overlay
from medseg.report.planes import PLANES

CENTRE, MARKER = Structure("centre", 1, color="#ff0000"), Structure("marker", 2, color="#00ff00")
SCHEMA = LabelSchema((CENTRE, MARKER))
SHAPE = (40, 44, 48)
GRID = Geometry.from_spacing(SHAPE, (3.0, 3.0, 3.0))
WINDOW = (-160.0, 240.0)
AIR_HU = -1000.0
TEN_VOXELS_IN_PIXELS = 10 * 3.0 / SMALLEST_VIEW_MM * 2.8 * 90
"""Of a panel of 2.8 inches at 90 dots an inch, roughly."""

LPS = Geometry(np.diag([-3.0, -3.0, 3.0, 1.0]), SHAPE)
"""The axes of the head-and-neck scans: i towards the left, j towards the back."""


def block(place: tuple[int, int, int], value: int, half: int = 4, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    labels = np.zeros(shape, np.uint8)
    labels[tuple(slice(max(p - half, 0), p + half) for p in place)] = value
    return labels


def places_of(picture: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    """Pixels (row, column) of a pure colour on black; lines are, also thin ones, and fills are not."""
    on, off = ([c for c in range(3) if (color[c] > 0) is wanted] for wanted in (True, False))
    return np.argwhere((picture[..., on] > 0.35).all(axis=-1) & (picture[..., off] < 0.2).all(axis=-1))


def drawn(path: Path, image: np.ndarray, grid: Geometry, prediction: np.ndarray | None, reference: np.ndarray | None) -> np.ndarray:  # fmt: skip
    draw_overlay(path, image, grid, SCHEMA, prediction, reference, "case", WINDOW)
    return np.asarray(mpl_image.imread(path))[..., :3]


@pytest.mark.parametrize(
    ("towards", "axial", "coronal", "sagittal"),
    [
        # voxel offset along L, P, S of the file → (right, down) on the picture of each plane; None: not in that plane
        ((-10, 0, 0), (-1, 0), (-1, 0), None),
        ((10, 0, 0), (1, 0), (1, 0), None),
        ((0, 10, 0), (0, 1), None, (1, 0)),
        ((0, -10, 0), (0, -1), None, (-1, 0)),
        ((0, 0, 10), None, (0, -1), (0, -1)),
    ],
    ids=["right", "left", "back", "front", "head"],
)
def test_directions_are_as_a_radiologist_expects(
    tmp_path: Path,
    towards: tuple[int, int, int],
    axial: tuple[int, int] | None,
    coronal: tuple[int, int] | None,
    sagittal: tuple[int, int] | None,
) -> None:
    middle = (20, 22, 24)
    labels = block(middle, 1)
    marker = block(tuple(m + t for m, t in zip(middle, towards, strict=True)), 2, half=3)
    labels[marker > 0] = 2
    turned = LPS.axes.to_canonical(labels)
    picture = drawn(tmp_path / "a.png", np.full(turned.shape, AIR_HU), LPS.canonical, None, turned)
    first_row = picture[: picture.shape[0] // 2]
    width = picture.shape[1] // 3
    for number, expected in enumerate((axial, coronal, sagittal)):
        panel = first_row[:, number * width : (number + 1) * width]
        centre, found = places_of(panel, (1, 0, 0)), places_of(panel, (0, 1, 0))
        assert len(centre) > 50, "the row's structure is in each of its planes"
        if expected is None:
            assert len(found) == 0
        else:
            down, right = found.mean(axis=0) - centre.mean(axis=0)
            along, across = (right, down) if expected[0] else (down, right)
            assert np.sign(along) == sum(expected)
            assert abs(along) == pytest.approx(TEN_VOXELS_IN_PIXELS, rel=0.1)
            assert abs(across) < 0.1 * TEN_VOXELS_IN_PIXELS


def test_letters_belong_to_the_turned_axes() -> None:
    letters = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
    for plane in PLANES:
        left, right, bottom, top = (letters[letter] for letter in plane.letters)
        x, y = plane.along
        assert (left, right, bottom, top) == ((x, 1), (x, -1), (y, -1), (y, 1)), "x is turned, y is not"
        assert {plane.across, *plane.along} == {0, 1, 2}


def test_a_prediction_is_drawn_dashed_and_a_reference_solid(tmp_path: Path) -> None:
    labels, image = block((20, 22, 24), 2), np.full(SHAPE, AIR_HU)
    solid = places_of(drawn(tmp_path / "r.png", image, GRID, None, labels), (0, 1, 0))
    dashed = places_of(drawn(tmp_path / "p.png", image, GRID, labels, None), (0, 1, 0))
    assert 0.3 * len(solid) < len(dashed) < 0.9 * len(solid)


@pytest.mark.parametrize(
    ("prediction", "reference"),
    [
        (None, None),
        (np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)),
        (block((20, 22, 24), 1), np.zeros(SHAPE, np.uint8)),
        (np.zeros(SHAPE, np.uint8), block((0, 0, 47), 1)),
        (np.full(SHAPE, 2, np.uint8), block((20, 22, 24), 1)),
    ],
    ids=["no maps", "empty maps", "only predicted", "missed, in a corner", "everywhere"],
)
def test_odd_cases_are_drawn(tmp_path: Path, prediction: np.ndarray | None, reference: np.ndarray | None) -> None:
    picture = drawn(tmp_path / "odd.png", np.zeros(SHAPE, np.int16), GRID, prediction, reference)
    assert picture.std() > 0.1


def test_one_slice_and_one_voxel_are_drawn(tmp_path: Path) -> None:
    shape = (30, 30, 1)
    labels = np.zeros(shape, np.uint8)
    labels[5, 6, 0] = 2
    picture = drawn(
        tmp_path / "slice.png",
        np.zeros(shape, np.float32),
        Geometry.from_spacing(shape, (1.0, 1.0, 5.0)),
        labels,
        labels,
    )
    assert len(places_of(picture, (0, 1, 0))) > 0


def test_rows_and_bytes_stay_within_limits(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shape, num = (96, 96, 96), MAX_ROWS + 8
    schema = LabelSchema(tuple(Structure(f"s{n}", n + 1) for n in range(num)))
    labels = np.arange(np.prod(shape)).reshape(shape) // (np.prod(shape) // num + 1) + 1
    noise = rng.normal(40, 200, shape).astype(np.float32)
    grid = Geometry.from_spacing(shape, (1.5, 1.5, 1.5))
    draw_overlay(tmp_path / "n.png", noise, grid, schema, None, labels.astype(np.uint8), "noise", WINDOW)
    rows, columns = mpl_image.imread(tmp_path / "n.png").shape[:2]
    assert rows / columns < (MAX_ROWS + 1) / 3
    assert (tmp_path / "n.png").stat().st_size <= MAX_BYTES


def test_a_picture_that_would_be_too_large_is_written_coarser(tmp_path: Path) -> None:
    figure = new_figure(12.0, 12.0)
    figure.figimage(np.random.default_rng(0).random((1080, 1080, 3)), resize=False)
    write_png(tmp_path / "big.png", figure)
    assert 0.2 * MAX_BYTES < (tmp_path / "big.png").stat().st_size <= MAX_BYTES
    assert [path.name for path in tmp_path.iterdir()] == ["big.png"]


def test_a_region_is_outlined_around_all_its_values(tmp_path: Path) -> None:
    whole, core = Structure("whole", 1, color="#ff0000", region=(1, 2)), Structure("core", 2, color="#00ff00")
    labels = block((20, 22, 24), 2)  # only the core is there, and with it the whole
    schema, image = LabelSchema((whole, core)), np.full(SHAPE, AIR_HU)
    draw_overlay(tmp_path / "a.png", image, GRID.canonical, schema, None, labels, "case", WINDOW)
    picture = np.asarray(mpl_image.imread(tmp_path / "a.png"))[..., :3]
    first_row, second_row = np.array_split(picture[:, : picture.shape[1] // 3], 2)
    assert len(places_of(first_row, (1, 0, 0))) > 50
    assert len(places_of(second_row, (0, 1, 0))) > 50


def test_the_ignore_label_and_names_with_dollars_are_drawn_without_harm(tmp_path: Path) -> None:
    labels = block((20, 22, 24), 9)
    labels[block((8, 8, 8), 1) > 0] = 3
    schema = LabelSchema((Structure("$\\frac{$", 3),), ignore_value=9)
    draw_overlay(tmp_path / "a.png", np.zeros(SHAPE), GRID.canonical, schema, labels, labels, "$x_{$", WINDOW)
    assert np.asarray(mpl_image.imread(tmp_path / "a.png")).shape[0] > 100
