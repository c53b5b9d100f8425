"""Voxel borders and overlap: our scores against MONAI's."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.metrics import (
    compute_average_surface_distance,
    compute_dice,
    compute_hausdorff_distance,
    compute_iou,
    compute_surface_dice,
)
from scipy import ndimage

from medseg.core.geometry import Geometry
from medseg.core.labels import LabelSchema, Structure
from medseg.metrics.case import measure_structures
from medseg.metrics.overlap import channel_dice

SCHEMA = LabelSchema((Structure("a", 2, tolerance_mm=2.0), Structure("b", 7, tolerance_mm=3.0)))
ALL = SCHEMA.annotated_channels(None)

SHAPE = (18, 22, 15)
KINDS = ("blobs", "noise", "whole millimetres", "edges", "single voxels")
FEW, MANY = range(50), range(50, 1000)


def blobs(shape: tuple[int, int, int], seed: int) -> np.ndarray:
    field = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 2)
    return np.select([field > 0.08, field < -0.09], [2, 7], 0).astype(np.uint8)


def drawn(kind: str, seed: int) -> tuple[np.ndarray, np.ndarray, tuple[float, float, float]]:
    """A prediction, a reference, and a spacing."""
    rng = np.random.default_rng(seed)
    i, j, k = rng.uniform(0.7, 4.0, 3)
    prediction, reference = np.zeros((2, *SHAPE), np.uint8)
    match kind:
        case "noise":
            shares = [0.9, 0.05, 0.05]
            prediction, reference = (rng.choice([0, 2, 7], SHAPE, p=shares).astype(np.uint8) for _ in range(2))
        case "blobs" | "whole millimetres":
            prediction, reference = blobs(SHAPE, seed), np.roll(blobs(SHAPE, seed), 1, axis=seed % 3)
            if kind == "whole millimetres":  # distances that equal the tolerance
                i, j, k = rng.integers(1, 4, 3)
        case "edges":
            for labels in (prediction, reference):
                for value in (2, 7):
                    low, high = rng.integers(0, 8, 3), np.array(SHAPE) - rng.integers(0, 7, 3)
                    cut = rng.integers(3)
                    low[cut], high[cut] = (0, high[cut] // 2) if value == 2 else (SHAPE[cut] // 2, SHAPE[cut])
                    labels[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = value
        case "single voxels":
            for labels in (prediction, reference):
                for value in (2, 7):
                    labels[tuple(rng.integers(0, SHAPE))] = value
    return prediction, reference, (float(i), float(j), float(k))


def assert_same_as_monai(
    prediction: np.ndarray, reference: np.ndarray, grid: Geometry, schema: LabelSchema = SCHEMA
) -> int:
    """How many structures were compared."""
    annotated = schema.annotated_channels(None)
    scores = measure_structures(prediction, reference, grid, schema, annotated, surface="borders")
    options = {"include_background": True, "spacing": list(grid.spacing_ijk_mm)}
    num_scored = 0
    for structure in schema.structures:
        p, r = prediction == structure.value, reference == structure.value
        score = scores[structure.name]
        if not (p.any() and r.any()):
            assert score.status != "scored"
            continue
        num_scored += 1
        pair = [torch.from_numpy(mask[None, None].astype(np.float32)) for mask in (p, r)]
        assert score.dice == pytest.approx(float(compute_dice(*pair)), abs=1e-6)
        assert score.iou == pytest.approx(float(compute_iou(*pair)), abs=1e-6)
        distance = float(compute_hausdorff_distance(*pair, percentile=95, **options))
        assert score.hd95_mm == pytest.approx(distance, abs=1e-3)
        nsd = float(compute_surface_dice(*pair, class_thresholds=[structure.tolerance_mm], **options))
        assert score.nsd == pytest.approx(nsd, abs=1e-3)
        assd = float(compute_average_surface_distance(*pair, symmetric=True, **options))
        assert score.assd_mm == pytest.approx(assd, abs=1e-3)
        difference_ml = (int(p.sum()) - int(r.sum())) * grid.voxel_volume_ml
        assert score.volume_difference_ml == pytest.approx(difference_ml)
    return num_scored


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seeds", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
def test_scores_agree_with_monai(kind: str, seeds: range) -> None:
    num_scored = 0
    for seed in seeds:
        prediction, reference, spacing = drawn(kind, seed)
        num_scored += assert_same_as_monai(prediction, reference, Geometry.from_spacing(SHAPE, spacing))
    assert num_scored > len(seeds)


def perturbed(labels: np.ndarray, seed: int) -> np.ndarray:
    """Every structure shifted, grown or shrunk by a voxel or two."""
    rng = np.random.default_rng(seed)
    result = np.zeros_like(labels)
    for value in np.unique(labels[labels > 0]):
        mask = labels == value
        changes = (ndimage.shift, ndimage.binary_dilation, ndimage.binary_erosion)
        options = ({"shift": rng.integers(-2, 3, 3), "order": 0}, {}, {})
        kind = rng.integers(3)
        result[changes[kind](mask, **options[kind])] = value
    return result


def test_scores_of_real_contours_agree_with_monai(sample: Path) -> None:
    paths = sorted((sample / "labels").glob("*.nii.gz"))[:3]
    for seed, path in enumerate(paths):
        image = nibabel.load(path)
        reference = np.asarray(image.dataobj).astype(np.uint8)
        schema = LabelSchema(tuple(Structure(str(value), int(value)) for value in np.unique(reference)[1:]))
        grid = Geometry(image.affine.astype(np.float64), reference.shape)
        assert assert_same_as_monai(perturbed(reference, seed), reference, grid, schema) >= 4


@pytest.mark.slow
def test_scores_of_117_classes_agree_with_monai(shared_data: Path) -> None:
    image = nibabel.load(shared_data / "ct_117" / "ct_3mm_labels.nii.gz")
    reference = np.asarray(image.dataobj).astype(np.uint8)
    schema = LabelSchema(tuple(Structure(str(value), value) for value in range(1, 118)))
    grid = Geometry(image.affine.astype(np.float64), reference.shape)
    assert assert_same_as_monai(perturbed(reference, 0), reference, grid, schema) > 50


@pytest.mark.filterwarnings("ignore:the (ground truth|prediction) of class 0 is all 0")
def test_no_score_stands_where_monai_has_no_number() -> None:
    empty, there = torch.zeros(1, 1, 4, 4, 4), torch.zeros(1, 1, 4, 4, 4)
    there[0, 0, 1, 1, 1] = 1
    options = {"include_background": True}
    for pair in ((there, empty), (empty, there)):
        assert not np.isfinite(float(compute_hausdorff_distance(*pair, percentile=95, **options)))
        assert float(compute_surface_dice(*pair, class_thresholds=[2.0], **options)) == 0.0
    assert np.isnan(float(compute_surface_dice(empty, empty, class_thresholds=[2.0], **options)))


def test_channel_dice_agrees_with_the_scores() -> None:
    shape = (12, 12, 12)
    prediction, reference = blobs(shape, 1), blobs(shape, 2)
    scores = measure_structures(prediction, reference, Geometry.from_spacing(shape, (1.0, 1.0, 1.0)), SCHEMA, ALL)
    annotated = np.array([True, True, False])
    quick = channel_dice(SCHEMA.to_classes(prediction), SCHEMA.to_classes(reference), annotated, SCHEMA)
    assert quick[1] == pytest.approx(scores["a"].dice)
    assert np.isnan(quick[2]), "not annotated"
