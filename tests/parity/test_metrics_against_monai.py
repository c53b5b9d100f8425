"""Our scores against MONAI's and a line of NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.metrics import compute_dice, compute_hausdorff_distance, compute_surface_dice
from scipy import ndimage

from medseg.core.geometry import Geometry
from medseg.core.labels import LabelSchema, Structure
from medseg.metrics.overlap import channel_dice
from medseg.metrics.surface import measure_structures

SCHEMA = LabelSchema((Structure("a", 2, tolerance_mm=2.0), Structure("b", 7, tolerance_mm=3.0)))
ALL = SCHEMA.annotated_channels(None)


def blobs(shape: tuple[int, int, int], seed: int) -> np.ndarray:
    field = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 2)
    return np.select([field > 0.08, field < -0.09], [2, 7], 0).astype(np.uint8)


def assert_same_as_monai(prediction: np.ndarray, reference: np.ndarray, spacing: tuple[float, float, float]) -> None:
    shape = prediction.shape
    scores = measure_structures(prediction, reference, Geometry.from_spacing(shape, spacing), SCHEMA, ALL)
    options = {"include_background": True, "spacing": spacing}
    for structure in SCHEMA.structures:
        p, r = prediction == structure.value, reference == structure.value
        pair = [torch.from_numpy(mask[None, None].astype(np.float32)) for mask in (p, r)]
        score = scores[structure.name]
        distance = float(compute_hausdorff_distance(*pair, percentile=95, **options))
        nsd = float(compute_surface_dice(*pair, class_thresholds=[structure.tolerance_mm], **options))
        assert score.dice == pytest.approx(2 * (p & r).sum() / (p.sum() + r.sum()), abs=1e-6)
        assert score.dice == pytest.approx(float(compute_dice(*pair)), abs=1e-6)
        assert score.hd95_mm == pytest.approx(distance, abs=1e-3)
        assert score.nsd == pytest.approx(nsd, abs=1e-3)
        assert score.volume_difference_ml == pytest.approx((int(p.sum()) - int(r.sum())) * np.prod(spacing) / 1000)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("kind", ["blobs", "noise", "whole millimetres"])
def test_scores_agree_with_monai(seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    shape = (18, 22, 15)
    if kind == "noise":
        prediction, reference = (rng.choice([0, 2, 7], shape, p=[0.9, 0.05, 0.05]).astype(np.uint8) for _ in range(2))
    else:
        prediction, reference = blobs(shape, seed), np.roll(blobs(shape, seed), 1, axis=seed % 3)
    # Whole millimetres make distances that equal the tolerance.
    i, j, k = rng.integers(1, 4, 3) if kind == "whole millimetres" else rng.uniform(0.7, 4.0, 3)
    assert_same_as_monai(prediction, reference, (float(i), float(j), float(k)))


def test_scores_agree_with_monai_at_the_edge_of_the_volume() -> None:
    prediction, reference = np.zeros((2, 10, 12, 8), np.uint8)
    prediction[:4, :6], reference[:5, 2:9] = 2, 2
    prediction[6:, 7:, 3:], reference[8:, 9:, 0:5] = 7, 7
    assert_same_as_monai(prediction, reference, (0.9, 1.3, 3.0))


@pytest.mark.filterwarnings("ignore:the (ground truth|prediction) of class 0 is all 0")
def test_no_score_stands_where_monai_has_no_number() -> None:
    empty, there = torch.zeros(1, 1, 4, 4, 4), torch.zeros(1, 1, 4, 4, 4)
    there[0, 0, 1, 1, 1] = 1
    options = {"include_background": True}
    for pair in ((there, empty), (empty, there)):
        assert not np.isfinite(float(compute_hausdorff_distance(*pair, percentile=95, **options)))
        assert float(compute_surface_dice(*pair, class_thresholds=[2.0], **options)) == 0.0
    assert np.isnan(float(compute_surface_dice(empty, empty, class_thresholds=[2.0], **options)))


def test_absent_missing_spurious_and_unannotated() -> None:
    grid = Geometry.from_spacing((4, 4, 4), (1.0, 1.0, 1.0))
    empty, a, b = np.zeros((3, 4, 4, 4), np.uint8)
    a[1, 1, 1], b[2, 2, 2] = 2, 7
    scores = measure_structures(a, b, grid, SCHEMA, ALL)
    assert (scores["a"].status, scores["a"].dice, scores["a"].nsd, scores["a"].hd95_mm) == ("spurious", 0.0, 0.0, None)
    assert (scores["b"].status, scores["b"].dice) == ("missing", 0.0)
    assert scores["b"].volume_difference_ml == pytest.approx(-0.001)
    nothing = measure_structures(empty, empty, grid, SCHEMA, ALL)["a"]
    assert (nothing.status, nothing.dice, nothing.volume_difference_ml) == ("absent", None, None)
    assert list(measure_structures(a, b, grid, SCHEMA, np.array([True, False, True]))) == ["b"]


def test_channel_dice_agrees_with_the_scores() -> None:
    shape = (12, 12, 12)
    prediction, reference = blobs(shape, 1), blobs(shape, 2)
    scores = measure_structures(prediction, reference, Geometry.from_spacing(shape, (1.0, 1.0, 1.0)), SCHEMA, ALL)
    quick = channel_dice(SCHEMA.to_classes(prediction), SCHEMA.to_classes(reference), np.array([True, True, False]))
    assert quick[1] == pytest.approx(scores["a"].dice)
    assert np.isnan(quick[2]), "not annotated"
