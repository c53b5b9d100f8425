"""Where slices lie in the body: 24 orientations, gantry tilts and obliques, against the numbers and against ITK."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from medseg.core.volume import Volume
from medseg.io.dicom_series import read_dicom_series

SPACING = np.array([1.5, 2.0, 2.5])
SHAPE = (12, 10, 8)
CENTRE = np.array([7.0, -11.0, 40.0])
RNG_SEED = 4

Affine = np.ndarray


def placed(directions: np.ndarray) -> Affine:
    """A grid with these axes around ``CENTRE``."""
    affine = np.eye(4)
    affine[:3, :3] = directions * SPACING
    affine[:3, 3] = CENTRE - affine[:3, :3] @ ((np.array(SHAPE) - 1) / 2)
    return affine


def orientations() -> list[Affine]:
    """All right-handed grids along the axes of the body: slices are sorted along their normal."""
    turns = [
        np.eye(3)[:, list(order)] * signs for order in permutations(range(3)) for signs in product((1, -1), repeat=3)
    ]
    return [placed(turn) for turn in turns if np.linalg.det(turn) > 0]


def tilts() -> list[Affine]:
    """Gantries tilted by up to 30°: slices stay parallel to each other, and their stack leans."""
    affines = []
    for number, degrees in enumerate(np.linspace(-30, 30, 20)):
        directions = orientations()[number % 24][:3, :3] / SPACING
        leaning = directions[:, 2] + np.tan(np.radians(degrees)) * directions[:, 1]
        affines.append(placed(np.stack([*directions.T[:2], leaning], axis=1)))
    return affines


def obliques() -> list[Affine]:
    rng = np.random.default_rng(RNG_SEED)
    turns = [np.linalg.qr(rng.normal(size=(3, 3)))[0] for _ in range(20)]
    return [placed(turn * [1, 1, np.linalg.det(turn)]) for turn in turns]


GRIDS = {
    **{f"orientation{number}": affine for number, affine in enumerate(orientations())},
    **{f"tilt{number}": affine for number, affine in enumerate(tilts())},
    **{f"oblique{number}": affine for number, affine in enumerate(obliques())},
}


def world(affine: Affine) -> np.ndarray:
    """Where each voxel lies, ``IJK`` × 3."""
    places: np.ndarray = np.stack([*np.indices(SHAPE), np.ones(SHAPE)], axis=-1) @ affine.T
    return places[..., :3]


def body(affine: Affine, landmark_ras: np.ndarray) -> np.ndarray:
    """A patient whose left is 500 and whose right is 1500, with a landmark of 3000."""
    places = world(affine)
    stored = np.where(places[..., 0] > CENTRE[0], 1500, 500)
    stored[np.linalg.norm(places - landmark_ras, axis=-1) < 1.5 * SPACING.max()] = 3000
    return stored.astype(np.uint16)


def names(order: str) -> list[str]:
    numbers = {
        "reversed": range(SHAPE[2])[::-1],
        "shuffled": np.random.default_rng(RNG_SEED).permutation(SHAPE[2]),
    }[order]
    return [f"{number:03d}.dcm" for number in numbers]


def check(volume: Volume, affine: Affine, landmark_ras: np.ndarray) -> None:
    np.testing.assert_allclose(volume.geometry.affine_ras, affine, atol=1e-6)
    stored, places = volume.array[0] + 1024, world(volume.geometry.affine_ras)
    is_landmark = stored == 3000
    assert is_landmark.any()
    found_ras = places[is_landmark].mean(axis=0)
    assert (np.abs(found_ras - landmark_ras) <= 0.5 * SPACING.min()).all()
    is_right = places[..., 0] > CENTRE[0]
    np.testing.assert_array_equal(stored[~is_landmark], np.where(is_right, 1500, 500)[~is_landmark])


@pytest.mark.parametrize("order", ["reversed", "shuffled"])
@pytest.mark.parametrize("grid", GRIDS)
def test_a_landmark_is_where_it_was(tmp_path: Path, write_series: Any, grid: str, order: str) -> None:
    affine = GRIDS[grid]
    landmark_ras = (affine @ [*np.random.default_rng(RNG_SEED).uniform(3, 5, 3), 1])[:3]
    write_series(tmp_path / "a", body(affine, landmark_ras), affine, names=names(order))
    volume = read_dicom_series(tmp_path / "a")
    check(volume, affine, landmark_ras)
    assert [note.code for note in volume.notes] == (["dicom.tilted"] if "tilt" in grid else [])
    check_against_itk(tmp_path / "a", volume, is_sheared="tilt" in grid)


def check_against_itk(folder: Path, volume: Volume, *, is_sheared: bool) -> None:
    """ITK sorts slices along their normal too. It has no word for shear, so tilted slices are read one by one."""
    files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
    sets = [(slice(k, k + 1), [file]) for k, file in enumerate(files)] if is_sheared else [(slice(None), files)]
    for part, names_of_part in sets:
        image = sitk.ReadImage(names_of_part)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image).transpose(2, 1, 0), volume.array[0][:, :, part])
        first = part.start or 0
        for i, j, k in product((0, SHAPE[0] - 1), (0, SHAPE[1] - 1), {0, image.GetSize()[2] - 1}):
            itk_ras = np.array(image.TransformIndexToPhysicalPoint((i, j, k))) * [-1, -1, 1]
            ours_ras = (volume.geometry.affine_ras @ [i, j, first + k, 1])[:3]
            np.testing.assert_allclose(ours_ras, itk_ras, atol=1e-3)
