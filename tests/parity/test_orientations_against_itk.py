"""World coordinates of volume files, against nibabel and SimpleITK: every orientation, any oblique grid, every format.

The files are written by nibabel and SimpleITK, and a landmark at a known place of the patient is drawn into them.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from scipy.spatial.transform import Rotation

from medseg.core.volume import Volume
from medseg.io.volume import read_volume

FORMATS = ("nii.gz", "nii", "nrrd", "nhdr", "mha", "mhd")
SHAPE, SPACING = (30, 26, 22), np.array([1.5, 2.0, 3.0])
LANDMARK_RAS = np.array([-9.0, 5.0, 7.0])
"""In the left, front and upper part of a grid that is centred on the origin [mm]."""

AGREEMENT_MM = 1e-3

ORIENTATIONS = [
    np.eye(3)[:, list(order)] * signs
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1.0, -1.0), repeat=3)
]
NUM_OBLIQUES = 100


def oblique(number: int) -> np.ndarray:
    """A random rotation; every other one mirrored, as files of a left-handed grid are."""
    turn = Rotation.random(random_state=number).as_matrix()
    return turn * [1.0, 1.0, -1.0 if number % 2 else 1.0]


def affine_of(directions: np.ndarray) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = directions * SPACING
    affine[:3, 3] = -affine[:3, :3] @ (np.array(SHAPE) - 1) / 2
    return affine


def ball(affine: np.ndarray) -> np.ndarray:
    """A smooth ball around the landmark, on a grid."""
    index = np.indices(SHAPE).reshape(3, -1)
    world = affine[:3, :3] @ index + affine[:3, 3:]
    distance2 = ((world - LANDMARK_RAS[:, None]) ** 2).sum(axis=0)
    return (1000 * np.exp(-distance2 / (2 * 3.0**2))).reshape(SHAPE).astype(np.int16)


def written(path: Path, array: np.ndarray, affine: np.ndarray) -> Path:
    if ".nii" in path.name:
        nib.save(nib.Nifti1Image(array, affine), path)
        return path
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    image = SimpleITK.GetImageFromArray(array.transpose(2, 1, 0))
    image.SetSpacing(SPACING.tolist())
    image.SetDirection((lps[:3, :3] / SPACING).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    SimpleITK.WriteImage(image, str(path), useCompression=True)
    return path


def found_landmark(volume: Volume) -> np.ndarray:
    weights = volume.array[0].astype(float)
    centre = [(weights * axis).sum() / weights.sum() for axis in np.indices(SHAPE)]
    return (volume.geometry.affine_ras @ [*centre, 1.0])[:3]


def corners() -> np.ndarray:
    return np.array(list(itertools.product(*((0, size - 1) for size in SHAPE))))


def world_by_itk(path: Path) -> np.ndarray | None:
    """RAS places of the corners as SimpleITK has them; None where it refuses the file."""
    try:
        image = SimpleITK.ReadImage(str(path))
    except RuntimeError as error:
        assert re.search("orthonormal", str(error)), "its one objection is to directions rounded to float32"
        return None
    lps = [image.TransformIndexToPhysicalPoint([int(i) for i in corner]) for corner in corners()]
    return np.array(lps) * [-1.0, -1.0, 1.0]


def check(path: Path, directions: np.ndarray) -> bool:
    """One file; returns whether SimpleITK could be asked."""
    affine = affine_of(directions)
    volume = read_volume(written(path, ball(affine), affine))
    landmark = found_landmark(volume)
    assert np.linalg.norm(landmark - LANDMARK_RAS) <= 0.5 * SPACING.min()
    assert (np.sign(landmark) == np.sign(LANDMARK_RAS)).all(), "left is left"
    ours = corners() @ volume.geometry.affine_ras[:3, :3].T + volume.geometry.affine_ras[:3, 3]
    if ".nii" in path.name:
        theirs = nib.affines.apply_affine(nib.load(path).affine, corners())
        np.testing.assert_allclose(ours, theirs, atol=AGREEMENT_MM, rtol=0)
    by_itk = world_by_itk(path)
    if by_itk is not None:
        np.testing.assert_allclose(ours, by_itk, atol=AGREEMENT_MM, rtol=0)
    return by_itk is not None


@pytest.mark.parametrize("suffix", FORMATS)
def test_each_of_48_orientations(tmp_path: Path, suffix: str) -> None:
    asked = [check(tmp_path / f"{number}.{suffix}", turn) for number, turn in enumerate(ORIENTATIONS)]
    assert len(asked) == 48
    assert all(asked)


@pytest.mark.parametrize("suffix", FORMATS)
def test_oblique_grids(tmp_path: Path, suffix: str) -> None:
    asked = [check(tmp_path / f"{number}.{suffix}", oblique(number)) for number in range(NUM_OBLIQUES)]
    assert sum(asked) >= NUM_OBLIQUES // 2


@pytest.mark.parametrize("space", ["right-anterior-superior", "left-anterior-superior", "left-posterior-superior"])
def test_each_space_of_nrrd(tmp_path: Path, space: str) -> None:
    """The same directions mean another place in each space; SimpleITK knows all three."""
    path = written(tmp_path / "a.nrrd", ball(np.eye(4)), affine_of(oblique(3)))
    path.write_bytes(path.read_bytes().replace(b"left-posterior-superior", space.encode()))
    geometry = read_volume(path).geometry
    ours = corners() @ geometry.affine_ras[:3, :3].T + geometry.affine_ras[:3, 3]
    np.testing.assert_allclose(ours, world_by_itk(path), atol=AGREEMENT_MM, rtol=0)


@pytest.mark.parametrize("unit", ["meter", "micron"])
def test_other_units_of_nifti_become_millimetres(tmp_path: Path, unit: str) -> None:
    factor = {"meter": 1e3, "micron": 1e-3}[unit]
    affine = affine_of(ORIENTATIONS[9])
    image = nib.Nifti1Image(ball(affine), np.diag([1 / factor, 1 / factor, 1 / factor, 1.0]) @ affine)
    image.header.set_xyzt_units(unit)
    image.set_qform(image.affine, 1)
    nib.save(image, tmp_path / "a.nii.gz")
    volume = read_volume(tmp_path / "a.nii.gz")
    assert np.linalg.norm(found_landmark(volume) - LANDMARK_RAS) <= 0.5 * SPACING.min()
    ours = corners() @ volume.geometry.affine_ras[:3, :3].T + volume.geometry.affine_ras[:3, 3]
    np.testing.assert_allclose(ours, world_by_itk(tmp_path / "a.nii.gz"), atol=AGREEMENT_MM, rtol=0)
