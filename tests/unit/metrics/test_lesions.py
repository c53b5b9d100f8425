"""Lesion-wise scores, against a flood fill over sets of voxels."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from medseg.metrics.lesions import LesionMatches, match_lesions

Voxel = tuple[int, ...]


def parts_of(mask: np.ndarray) -> list[set[Voxel]]:
    """Connected parts by flood fill, corners included."""
    left = set(map(tuple, np.argwhere(mask).tolist()))
    parts = []
    while left:
        front, part = [left.pop()], set()
        while front:
            voxel = front.pop()
            part.add(voxel)
            for step in product((-1, 0, 1), repeat=3):
                other = tuple(a + b for a, b in zip(voxel, step, strict=True))
                if other in left:
                    left.remove(other)
                    front.append(other)
        parts.append(part)
    return parts


@pytest.mark.parametrize("seed", range(30))
def test_matches_agree_with_a_flood_fill(seed: int) -> None:
    rng = np.random.default_rng(seed)
    prediction, reference = (rng.random((12, 9, 10)) < density for density in rng.uniform(0.0, 0.08, 2))
    sides = [parts_of(mask) for mask in (prediction, reference)]
    voxels = [set().union(*parts) for parts in sides]
    for least in (1, 2):
        found = match_lesions(prediction, reference, min_overlap_voxels=least)
        assert found == LesionMatches(
            num_lesions=len(sides[1]),
            num_found=sum(len(part & voxels[0]) >= least for part in sides[1]),
            num_predicted=len(sides[0]),
            num_true=sum(len(part & voxels[1]) >= least for part in sides[0]),
        )


def test_two_lesions_found_by_one_part_are_both_found() -> None:
    prediction, reference = np.zeros((2, 5, 5, 20), bool)
    reference[2, 2, 2:5] = reference[2, 2, 8:10] = reference[2, 2, 18] = True
    prediction[2, 2, 4:9] = prediction[0, 0, 0] = True
    found = match_lesions(prediction, reference)
    assert found == LesionMatches(num_lesions=3, num_found=2, num_predicted=2, num_true=1)
    assert (found.sensitivity, found.precision) == (pytest.approx(2 / 3), 0.5)
    assert found.f1 == pytest.approx(2 * (2 / 3) * 0.5 / (2 / 3 + 0.5))


def test_voxels_that_share_a_corner_are_one_lesion() -> None:
    mask = np.zeros((4, 4, 4), bool)
    mask[1, 1, 1] = mask[2, 2, 2] = True
    assert match_lesions(mask, mask) == LesionMatches(1, 1, 1, 1)


@pytest.mark.parametrize(
    ("matches", "scores"),
    [
        (LesionMatches(0, 0, 0, 0), (None, None, None)),
        (LesionMatches(3, 0, 0, 0), (0.0, None, 0.0)),
        (LesionMatches(0, 0, 2, 0), (None, 0.0, 0.0)),
        (LesionMatches(3, 0, 2, 0), (0.0, 0.0, 0.0)),
        (LesionMatches(2, 2, 2, 2), (1.0, 1.0, 1.0)),
    ],
)
def test_what_cannot_be_divided_has_no_score(matches: LesionMatches, scores: tuple[float | None, ...]) -> None:
    assert (matches.sensitivity, matches.precision, matches.f1) == scores
