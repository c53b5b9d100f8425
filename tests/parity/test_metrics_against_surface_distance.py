"""Surface elements: our scores against DeepMind's ``surface-distance`` (PyPI 0.1)."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import surface_distance
from scipy import ndimage
from surface_distance.lookup_tables import (
    ENCODE_NEIGHBOURHOOD_3D_KERNEL,
    create_table_neighbour_code_to_surface_area,
)

from medseg.core.geometry import Geometry
from medseg.core.labels import LabelSchema, Structure
from medseg.metrics.case import measure_structures
from medseg.metrics.elements import NUM_CODES, element_areas_mm2

SHAPE = (16, 13, 19)
KINDS = ("noise", "dense noise", "blobs", "edges", "single voxels", "corners")
FEW, MANY = range(50), range(50, 1000)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 1.9, 5.0), (3.0, 0.5, 0.9)])
def test_areas_of_all_cells_agree(spacing: tuple[float, float, float]) -> None:
    weights = ENCODE_NEIGHBOURHOOD_3D_KERNEL.ravel()  # their bit of each corner, in the order of ours
    theirs = [sum(int(weights[bit]) for bit in range(8) if code >> bit & 1) for code in range(NUM_CODES)]
    assert element_areas_mm2(spacing) == pytest.approx(
        create_table_neighbour_code_to_surface_area(spacing)[theirs], abs=1e-12
    )


def drawn(kind: str, rng: np.random.Generator) -> np.ndarray:
    """A mask that is not empty."""
    mask = np.zeros(SHAPE, bool)
    match kind:
        case "noise":
            mask = rng.random(SHAPE) < 0.03
        case "dense noise":
            mask = rng.random(SHAPE) < rng.uniform(0.3, 0.9)
        case "blobs":
            field = ndimage.gaussian_filter(rng.standard_normal(SHAPE), 2)
            mask = field > np.quantile(field, rng.uniform(0.6, 0.95))
        case "edges":
            low, high = rng.integers(0, 6, 3), np.array(SHAPE) - rng.integers(0, 6, 3)
            low[rng.integers(3)] = 0
            mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
        case "single voxels":
            mask[tuple(rng.integers(0, SHAPE))] = True
        case "corners":
            clump = rng.random((3, 4, 5)) < 0.7
            clump[0, 0, 0] = True
            mask[:3, :4, :5] = clump
            mask = mask if rng.random() < 0.5 else mask[::-1, ::-1, ::-1]
    return mask


def assert_same_as_surface_distance(
    prediction: np.ndarray, reference: np.ndarray, grid: Geometry, tolerance_mm: float
) -> None:
    schema = LabelSchema((Structure("a", 1, tolerance_mm=tolerance_mm),))
    maps = (prediction.astype(np.uint8), reference.astype(np.uint8))
    score = measure_structures(*maps, grid, schema, np.ones(2, bool))["a"]
    theirs = surface_distance.compute_surface_distances(reference, prediction, grid.spacing_ijk_mm)
    dice = surface_distance.compute_dice_coefficient(reference, prediction)
    assert score.dice == pytest.approx(dice, abs=1e-6)
    assert score.hd95_mm == pytest.approx(surface_distance.compute_robust_hausdorff(theirs, 95), abs=1e-3)
    nsd = surface_distance.compute_surface_dice_at_tolerance(theirs, tolerance_mm)
    assert score.nsd == pytest.approx(nsd, abs=1e-3)
    means = surface_distance.compute_average_surface_distance(theirs)
    areas = [theirs[f"surfel_areas_{side}"].sum() for side in ("gt", "pred")]
    assert score.assd_mm == pytest.approx(np.average(means, weights=areas), abs=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seeds", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
def test_scores_agree(kind: str, seeds: range) -> None:
    for seed in seeds:
        rng = np.random.default_rng(seed)
        masks = (drawn(kind, rng), drawn(kind, rng))
        # Every second time in quarters of a millimetre: distances that equal the tolerance.
        i, j, k = rng.integers(2, 16, 3) / 4 if seed % 2 else rng.uniform(0.4, 5.0, 3)
        tolerance_mm = float(rng.integers(1, 12) / 4)
        grid = Geometry.from_spacing(SHAPE, (float(i), float(j), float(k)))
        assert_same_as_surface_distance(*masks, grid, tolerance_mm)


def changed(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A mask shifted, grown or shrunk by a voxel or two."""
    match rng.integers(3):
        case 0:
            return ndimage.shift(mask, rng.integers(-2, 3, 3), order=0)
        case 1:
            return ndimage.binary_dilation(mask, iterations=int(rng.integers(1, 3)))
        case _:
            smaller = ndimage.binary_erosion(mask)
            return smaller if smaller.any() else mask


def assert_same_on_file(path: Path, max_structures: int, seed: int) -> None:
    image = nibabel.load(path)
    labels = np.asarray(image.dataobj)
    grid = Geometry(image.affine.astype(np.float64), labels.shape)
    rng = np.random.default_rng(seed)
    for value in np.unique(labels[labels > 0])[:max_structures]:
        reference = labels == value
        assert_same_as_surface_distance(changed(reference, rng), reference, grid, 2.0)


def test_scores_of_real_contours_agree(sample: Path) -> None:
    for seed, path in enumerate(sorted((sample / "labels").glob("*.nii.gz"))[:2]):
        assert_same_on_file(path, 7, seed)


@pytest.mark.slow
def test_scores_of_117_classes_agree(shared_data: Path) -> None:
    assert_same_on_file(shared_data / "ct_117" / "ct_3mm_labels.nii.gz", 117, 0)
