"""Contours burnt onto a grid agree with two independent ways: matplotlib's point-in-path test, and drawing finely.

The first has our definition (a voxel's centre lies inside), the second another one (at least half of the voxel is
covered, counted on 16 × 16 points drawn by Pillow). Where a scan's slice has no contour, it stays empty.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from matplotlib.path import Path as Outline
from PIL import Image, ImageDraw

from medseg.core.geometry import Geometry
from medseg.io.contours import rasterise
from medseg.io.dicom_rtstruct import read_rtstruct

FINE = 16
"""Points along each side of a voxel."""

SLIGHTLY_MM = np.array([1e-3, 1e-3, 0.0])

LARGE_VOXELS, LARGE_DICE, SMALL_DICE = 1000, 0.98, 0.95


def series_geometry(folder: Path) -> Geometry:
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return Geometry(np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine, image.GetSize())


def inside_path(polygon: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    points = np.stack(np.meshgrid(*(np.arange(size) for size in shape), indexing="ij"), axis=-1)
    return Outline(polygon, closed=False).contains_points(points.reshape(-1, 2)).reshape(shape)


def half_covered(polygon: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    fine = Image.new("1", (shape[0] * FINE, shape[1] * FINE))
    ImageDraw.Draw(fine).polygon([tuple(point) for point in (polygon + 0.5) * FINE - 0.5], fill=1)
    shares = np.asarray(fine).T.reshape(shape[0], FINE, shape[1], FINE).mean(axis=(1, 3))
    return shares >= 0.5


def drawn(contours: tuple[np.ndarray, ...], geometry: Geometry, fill: Callable[..., np.ndarray]) -> np.ndarray:
    """Each contour on the slice nearest to it, several on one slice by the even-odd rule."""
    mask = np.zeros(geometry.shape_ijk, dtype=bool)
    for points in contours:
        homogeneous = np.c_[points * (-1, -1, 1), np.ones(len(points))]
        index = np.linalg.solve(geometry.affine_ras, homogeneous.T)[:3].T
        mask[:, :, round(index[:, 2].mean())] ^= fill(index[:, :2], geometry.shape_ijk[:2])
    return mask


@pytest.mark.parametrize("fill", [inside_path, half_covered])
@pytest.mark.parametrize("modality", ["CT", "PET", "MR_T1"])
def test_a_tumour_on_three_grids(shared_data: Path, modality: str, fill: Callable[..., np.ndarray]) -> None:
    folder = shared_data / "dicom/STS_002" / modality
    geometry = series_geometry(folder / "image")
    structures = read_rtstruct(folder / "mask/RS.dcm")
    mask, notes = structures.burn(1, geometry)
    expected = drawn(structures.rois[0].contours_lps_mm, geometry, fill)
    dice = 2 * np.count_nonzero(mask & expected) / (mask.sum() + expected.sum())
    assert dice >= (LARGE_DICE if expected.sum() > LARGE_VOXELS else SMALL_DICE)
    if fill is inside_path:
        np.testing.assert_array_equal(mask, expected)
    assert notes == ()


def test_four_structures_of_one_file(shared_data: Path) -> None:
    """Real outlines on three planes."""
    structures = read_rtstruct(shared_data / "dicom/rtutils_mock/invalid_reference_rt.dcm")
    affine = np.diag([-0.488281, -0.488281, 5.0, 1.0])
    affine[:3, 3] = (76.172, 76.172, 60.0)  # the middle of their image, which holds all of them
    geometry = Geometry(affine, (312, 312, 3))
    for roi in structures.rois:
        mask = structures.mask(roi.number, geometry)
        expected = drawn(roi.contours_lps_mm, geometry, inside_path)
        # These corners lie on voxel centres, where the two may decide differently: compare where they do not.
        border = drawn(tuple(points + SLIGHTLY_MM for points in roi.contours_lps_mm), geometry, inside_path)
        is_clear = expected == border
        assert mask.sum() > 1000
        np.testing.assert_array_equal(mask[is_clear], expected[is_clear])
        assert 2 * np.count_nonzero(mask & expected) / (mask.sum() + expected.sum()) >= LARGE_DICE


@pytest.mark.parametrize("seed", range(20))
def test_random_polygons_that_cross_themselves(seed: int) -> None:
    """Matplotlib fills by winding, so it judges each triangle of a fan, and even-odd joins them."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(-8, 48, size=(rng.integers(3, 30), 2))
    geometry = Geometry.from_spacing((40, 36, 3), (0.7, 1.3, 2.0))
    points = np.c_[corners * (0.7, 1.3), np.full(len(corners), 2.0)]
    mask, _ = rasterise([points], geometry, "polygon")
    expected = np.zeros((40, 36), dtype=bool)
    for second, third in itertools.pairwise(corners[1:]):
        expected ^= inside_path(np.array([corners[0], second, third]), (40, 36))
    np.testing.assert_array_equal(mask[:, :, 1], expected)
    assert not mask[:, :, [0, 2]].any()
