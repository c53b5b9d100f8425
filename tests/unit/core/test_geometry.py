from __future__ import annotations

import itertools

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg.core.errors import GeometryError
from medseg.core.geometry import Geometry

ORIENTATIONS = [
    "".join(codes) for order in itertools.permutations(("LR", "PA", "IS")) for codes in itertools.product(*order)
]


def test_there_are_48_orientations() -> None:
    assert len(set(ORIENTATIONS)) == 48


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_canonical_agrees_with_nibabel(codes: str) -> None:
    ornt = nib.orientations.axcodes2ornt(tuple(codes))
    affine = nib.orientations.inv_ornt_aff(ornt, (4, 5, 6))
    shape = tuple(int(size) for size in np.array((4, 5, 6))[np.argsort(ornt[:, 0])])
    array = np.arange(np.prod(shape)).reshape(shape)
    image = nib.Nifti1Image(array.astype(np.int32), np.linalg.inv(affine))
    closest = nib.as_closest_canonical(image)
    geometry = Geometry(image.affine, image.shape)
    np.testing.assert_array_equal(geometry.axes.to_canonical(array), np.asarray(closest.dataobj))
    np.testing.assert_allclose(geometry.canonical.affine_ras, closest.affine, atol=1e-6)
    np.testing.assert_array_equal(geometry.axes.from_canonical(geometry.axes.to_canonical(array)), array)


@given(st.floats(0.3, 6), st.floats(0.3, 6), st.integers(1, 40))
def test_resampled_covers_the_old_grid_about_its_centre(old: float, new: float, size: int) -> None:
    grid = Geometry.from_spacing((size, 3, 3), (old, 1.0, 1.0))
    resampled = grid.resampled((new, 1.0, 1.0))
    extent_old, extent_new = size * old, resampled.shape_ijk[0] * resampled.spacing_ijk_mm[0]
    assert extent_new >= extent_old * (1 - 2e-3)
    assert extent_new < extent_old + new + 1e-3
    centres = [g.affine_ras @ np.append((np.array(g.shape_ijk) - 1) / 2, 1) for g in (grid, resampled)]
    np.testing.assert_allclose(centres[0], centres[1], atol=1e-6)


@pytest.mark.parametrize(
    ("affine", "shape", "code"),
    [
        (np.diag([1, 1, np.nan, 1.0]), (2, 2, 2), "geometry.affine"),
        (np.array([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]), (2, 2, 2), "geometry.affine"),
        (np.diag([1, 1, 0, 1.0]), (2, 2, 2), "geometry.spacing"),
        (np.diag([1, 1, 50, 1.0]), (2, 2, 2), "geometry.spacing"),
        (np.eye(4), (0, 2, 2), "geometry.shape"),
    ],
)
def test_impossible_grids_are_refused(affine: np.ndarray, shape: tuple[int, int, int], code: str) -> None:
    with pytest.raises(GeometryError) as raised:
        Geometry(affine, shape)
    assert raised.value.code == code


def test_difference_says_what_differs() -> None:
    grid = Geometry.from_spacing((4, 5, 6), (1.0, 1.0, 1.0))
    assert grid.difference(Geometry(grid.affine_ras + 1e-6, (4, 5, 6))) is None
    assert "shape" in str(grid.difference(Geometry.from_spacing((4, 5, 7), (1.0, 1.0, 1.0))))
    moved = grid.affine_ras.copy()
    moved[0, 3] += 1
    assert "1.000 mm apart" in str(grid.difference(Geometry(moved, (4, 5, 6))))
