"""What is measured of a case, against independent computations and under changes that must not matter."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from medseg.core.case import CaseRecord
from medseg.core.geometry import Geometry
from medseg.core.labels import LabelSchema, Structure
from medseg.core.volume import LabelMap
from medseg.data.check.contours import Ground, is_cut_away, measure_label
from medseg.data.check.facts import CaseFacts
from medseg.data.check.intensities import find_landmarks, measure_image
from medseg.data.check.measure import CheckedDataset, measure_case

SCHEMA = LabelSchema((Structure("a", 1), Structure("b", 2), Structure("c", 7)))


def body(rng: np.random.Generator, shape=(24, 26, 28)) -> np.ndarray:
    """Water with some bone in noisy air."""
    image = rng.normal(-1000, 10, shape)
    image[4:-4, 5:-5] += 1040
    image[8:12, 8:12] += 600
    return image.round().astype(np.int16)


def turned(rng: np.random.Generator, shape: tuple[int, int, int]) -> Geometry:
    """A grid whose axes run along the world's in any order and direction."""
    affine = np.eye(4)
    affine[:3, :3] = (np.diag(rng.uniform(1, 4, 3)) * rng.choice([-1, 1], 3))[:, rng.permutation(3)]
    affine[:3, 3] = rng.uniform(-300, 300, 3)
    return Geometry(affine, shape)


def facts_of(array: np.ndarray, grid: Geometry, modality: str = "CT"):
    return measure_image(grid.axes.to_canonical(array).T, grid.canonical, "file", modality)


@given(st.integers(-2500, 2500), st.integers(0, 2**16))
@settings(max_examples=40)
def test_air_and_tissue_are_found_wherever_the_scale_puts_them(offset: int, seed: int) -> None:
    values, counts = np.unique(body(np.random.default_rng(seed)).astype(np.int64) + offset, return_counts=True)
    found = find_landmarks(values.astype(np.float64), counts)
    assert found is not None
    assert found.air_hu == pytest.approx(-1000 + offset, abs=30)
    assert found.tissue_hu == pytest.approx(40 + offset, abs=60)


@pytest.mark.parametrize("padding", [-1500, -2048, -3024, -32768])
def test_padding_is_not_taken_for_air(padding: int) -> None:
    image = body(np.random.default_rng(0))
    image[:2], image[-2:] = padding, padding
    values, counts = np.unique(image, return_counts=True)
    found = find_landmarks(values.astype(np.float64), counts)
    assert found is not None and found.is_hu


@pytest.mark.parametrize("factor", [0.1, 0.5, 2.0, 10.0])
def test_another_scale_is_not_taken_for_hu(factor: float) -> None:
    values, counts = np.unique((body(np.random.default_rng(0)) * factor).round(), return_counts=True)
    found = find_landmarks(values.astype(np.float64), counts)
    assert found is None or not found.is_hu


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("seed", range(4))
def test_the_digest_is_of_the_voxels_in_the_world_and_not_of_how_they_are_stored(dtype: type, seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = body(rng)
    plain = Geometry.from_spacing(image.shape, (2.0, 2.0, 3.0))
    other = turned(rng, image.shape)
    stored = other.axes.from_canonical(image).astype(dtype)
    first, second = facts_of(image, plain), facts_of(stored, Geometry(other.affine_ras, stored.shape))
    assert first.digest == second.digest
    np.testing.assert_allclose(first.thumbnail, second.thumbnail, atol=1e-6)
    changed = image.copy()
    changed[3, 4, 5] += 1
    assert facts_of(changed, plain).digest != first.digest


@pytest.mark.parametrize("seed", range(6))
def test_structures_are_measured_as_scipy_does(seed: int) -> None:
    rng = np.random.default_rng(seed)
    grid = turned(rng, (17, 19, 23))
    array = rng.choice([0, 1, 2, 7, 9], size=grid.shape_ijk, p=[0.8, 0.1, 0.05, 0.04, 0.01]).astype(np.uint8)
    image = rng.normal(-1000, 10, grid.shape_ijk).round()
    image[4:-4] += 1040
    ground = Ground(grid.axes.to_canonical(image).T, facts_of(image, grid))
    found = measure_label(LabelMap(array, grid), SCHEMA, "file", ground)
    assert found.strange_values == {9: int((array == 9).sum())}
    for structure in SCHEMA.structures:
        mask, facts = array == structure.value, found.structures[structure.name]
        world = np.argwhere(mask) @ grid.affine_ras[:3, :3].T + grid.affine_ras[:3, 3]
        assert facts.volume_ml == pytest.approx(mask.sum() * grid.voxel_volume_ml)
        np.testing.assert_allclose(facts.centre_mm, world.mean(axis=0), atol=1e-6)
        np.testing.assert_allclose(facts.spread_mm, world.std(axis=0), atol=1e-6)
        assert facts.mean_hu == pytest.approx(ndimage.mean(image, array, structure.value))
        assert facts.air_share == pytest.approx((image[mask] < -850).mean(), abs=0.01)


def test_regions_count_their_parts_and_ignored_voxels_are_not_strange() -> None:
    schema = LabelSchema((Structure("whole", 1, region=(1, 2)), Structure("core", 2)), ignore_value=3)
    grid = Geometry.from_spacing((4, 5, 6), (1.0, 1.0, 1.0))
    array = np.zeros(grid.shape_ijk, np.uint8)
    array[0], array[1], array[2] = 1, 2, 3
    found = measure_label(LabelMap(array, grid), schema, "file", None)
    assert found.strange_values == {}
    assert {name: facts.volume_ml for name, facts in found.structures.items()} == pytest.approx(
        {"whole": 0.060, "core": 0.030}
    )


def test_slices_without_a_body_are_cut_away_but_not_small_ones() -> None:
    areas = np.array([0.0, 9.0, 0.0, 100.0, 110.0, 40.0, 30.0, 2.0])
    assert is_cut_away(areas).tolist() == [True, True, True, False, False, False, False, True]
    assert not is_cut_away(np.zeros(5)).any()


@pytest.mark.parametrize("value", [-1000, 0, 77])
def test_contours_in_slices_of_one_value_lie_in_the_void(value: int) -> None:
    image = body(np.random.default_rng(0))
    image[:, :, 20:] = value
    label = np.zeros(image.shape, np.uint8)
    label[10:14, 10:14, 10:26] = 1
    grid = Geometry.from_spacing(image.shape, (2.0, 2.0, 3.0))
    facts = facts_of(image, grid)
    found = measure_label(LabelMap(label, grid), SCHEMA, "file", Ground(grid.axes.to_canonical(image).T, facts))
    assert found.structures["a"].void_share == found.structures["a"].outside_share == pytest.approx(6 / 16)


def checked(folder: Path, channels=("CT",), allow=()) -> CheckedDataset:
    return CheckedDataset(folder, channels, SCHEMA, frozenset(allow))


def codes(facts: CaseFacts) -> list[tuple[str, str | None]]:
    return [(finding.code, finding.file) for finding in facts.problems]


def save(path: Path, array: np.ndarray, affine=None) -> Path:
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


def test_one_bad_file_does_not_hide_what_the_others_say(tmp_path: Path) -> None:
    image = save(tmp_path / "i.nii.gz", body(np.random.default_rng(0)))
    label = save(tmp_path / "l.nii.gz", np.full((24, 26, 28), 9, np.uint8))
    missing = CaseRecord("x", "x", (tmp_path / "none.nii.gz",), label)
    facts = measure_case(missing, checked(tmp_path))
    assert codes(facts) == [("read.missing", "none.nii.gz")]
    assert facts.label is not None and facts.label.strange_values == {9: 24 * 26 * 28}
    image.write_bytes(image.read_bytes()[:-9])
    facts = measure_case(CaseRecord("x", "x", (image,), tmp_path / "no.nii.gz"), checked(tmp_path))
    assert codes(facts) == [("read.truncated", "i.nii.gz"), ("read.missing", "no.nii.gz")]


def test_channels_are_read_one_by_one(tmp_path: Path) -> None:
    ct = body(np.random.default_rng(0))
    first, second = save(tmp_path / "0.nii.gz", ct), save(tmp_path / "1.nii.gz", np.abs(ct), np.diag([2.0, 1, 1, 1]))
    facts = measure_case(CaseRecord("x", "x", (first, second)), checked(tmp_path, ("CT", "PET")))
    assert codes(facts) == [("geometry.channels", "1.nii.gz")]
    assert [(image.file, image.modality) for image in facts.images] == [("0.nii.gz", "CT"), ("1.nii.gz", "PET")]
    facts = measure_case(CaseRecord("x", "x", (first,) * 3), checked(tmp_path, ("CT", "PET")))
    assert codes(facts) == [("read.channels", "0.nii.gz")]
    both = save(tmp_path / "both.nii.gz", np.stack([ct, ct + 1], axis=-1))
    facts = measure_case(CaseRecord("x", "x", (both,)), checked(tmp_path, ("CT", "PET")))
    assert [image.modality for image in facts.images] == ["CT", "PET"] and not facts.problems


def test_what_is_allowed_is_read_and_told(tmp_path: Path) -> None:
    image = body(np.random.default_rng(0)).astype(np.float32)
    image[5, 5, 5] = np.nan
    record = CaseRecord("x", "x", (save(tmp_path / "i.nii.gz", image),))
    assert not measure_case(record, checked(tmp_path)).images
    facts = measure_case(record, checked(tmp_path, allow=["read.nonfinite"]))
    assert [(finding.code, finding.level) for finding in facts.problems] == [("read.nonfinite", "warning")]
    assert facts.images[0].landmarks is not None
