"""Probabilities on the file's grid: those of the interpolated logits, whichever way the network's grid is walked."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, special

from medseg.core.geometry import Geometry
from medseg.core.labels import LabelSchema, Structure
from medseg.core.patch import PatchLocation
from medseg.data.resample import AxisWeights, axis_weights, grid_weights
from medseg.data.restore import Crop, GridMapping
from medseg.data.shear import Shear, index_map
from medseg.inference import probabilities as module
from medseg.inference.description import ModelDescription, describe
from medseg.inference.probabilities import SURE, collect_probabilities, probabilities_of
from medseg.inference.resolve import make_resolver, walked_first
from medseg.io.bundle import read_bundle

TINY = Path(__file__).parents[2] / "golden" / "bundle_version_1"
OBLIQUE = np.array([[0, -1.2, 0, 3], [2.0, 0, 0, 4], [0, 0, 0.9, 5], [0, 0, 0, 1]])
TIE = 3 / SURE
"""Probabilities closer to each other than this may be written as one number."""


def model(num_structures: int, decision: str) -> ModelDescription:
    region = tuple(range(1, num_structures + 1)) if decision == "regions" else ()
    structures = [Structure(f"s{value}", value, region=region[value - 1 :]) for value in range(1, num_structures + 1)]
    activation = "softmax" if decision == "softmax" else "sigmoid"
    update = {"labels": LabelSchema(tuple(structures)), "activation": activation}
    return describe(read_bundle(TINY)).model_copy(update=update)


def smooth_logits(num_logits: int, shape, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal((num_logits, *shape))
    return np.stack([ndimage.gaussian_filter(channel, 1.5) * 20 for channel in noise]).astype(np.float32)


def both(logits, mapping, walk_axis, decision, folder, box=None, kept=None) -> tuple[np.ndarray, np.ndarray]:
    """Channel numbers and probabilities of the same planes."""
    shape = logits.shape[1:]
    box = box or PatchLocation((0, 0, 0), shape)
    description = model(len(logits) - (decision == "softmax"), decision)
    channels = np.zeros(mapping.file_shape_ijk, np.uint8)
    resolver = make_resolver(mapping, description.decision, walk_axis, box, shape, channels)
    names = kept or description.labels.names
    collected = collect_probabilities(description, names, folder, mapping, walk_axis, box, shape)
    for number, plane in enumerate(np.moveaxis(logits[(slice(None), *box.to_slices())], 1 + walk_axis, 0)):
        resolver.add(number, plane)
        collected.add(number, plane)
    whole = np.stack(list(collected.volumes()))
    collected.close()
    assert len(whole) == len(collected.names)
    return channels, whole / np.float64(SURE)


def expected(logits: np.ndarray, decision: str) -> np.ndarray:
    logits = logits.astype(np.float64)
    return special.softmax(logits, axis=0) if decision == "softmax" else special.expit(logits)


def assert_labels_follow(channels: np.ndarray, probabilities: np.ndarray, decision: str) -> None:
    """Away from ties, a label is what its probabilities say."""
    if decision == "softmax":
        found, best = probabilities.argmax(axis=0), np.sort(probabilities, axis=0)
        is_tie = best[-1] - best[-2] < TIE
    else:
        is_tie = (np.abs(probabilities - 0.5) < TIE).any(axis=0)
        is_in = probabilities > 0.5
        if decision == "regions":
            found = (is_in * np.arange(1, len(is_in) + 1).reshape(-1, 1, 1, 1)).max(axis=0)
        else:
            found = np.where(is_in.any(axis=0), probabilities.argmax(axis=0) + 1, 0)
            best = np.sort(np.concatenate([probabilities, np.zeros_like(probabilities[:1])]), axis=0)
            is_tie |= (best[-1] - best[-2] < TIE) & (best[-1] > 0.5)
    assert is_tie.mean() < 0.2
    np.testing.assert_array_equal(channels[~is_tie], found[~is_tie])


@pytest.mark.parametrize("decision", ["softmax", "sigmoid", "regions"])
@pytest.mark.parametrize("walk_axis", [0, 1, 2])
@given(st.integers(2, 6), st.tuples(*[st.floats(0.4, 3.0)] * 3), st.integers(0, 9))
@settings(max_examples=10)
def test_they_are_those_of_the_interpolated_logits_and_labels_follow_them(
    walk_axis, decision, tmp_path_factory, num_logits, spacing, seed
) -> None:
    file_grid = Geometry(OBLIQUE, (9, 8, 11))
    grid = file_grid.canonical.resampled(spacing)
    mapping = GridMapping(grid_weights(grid, file_grid.canonical, smooth=False), file_grid.axes)
    logits = smooth_logits(num_logits, grid.shape_ijk, seed)
    channels, found = both(logits, mapping, walk_axis, decision, tmp_path_factory.getbasetemp())
    whole = logits
    for axis in walked_first(walk_axis):
        whole = mapping.weights[axis].apply(whole, 1 + axis)
    whole = np.stack([file_grid.axes.from_canonical(of_one) for of_one in whole])
    np.testing.assert_allclose(found, expected(whole, decision), atol=0.6 / SURE)
    assert_labels_follow(channels, found, decision)


@pytest.mark.parametrize("decision", ["softmax", "regions"])
@pytest.mark.parametrize("walk_axis", [0, 1, 2])
def test_on_a_sheared_grid_too(walk_axis: int, decision: str, tmp_path: Path) -> None:
    affine = np.diag([1.1, 1.2, 2.5, 1.0])
    affine[1, 2] = 0.9  # a tilted gantry
    file_grid = Geometry(affine, (24, 22, 12))
    upright = file_grid.orthogonal.canonical
    grid = upright.resampled((2.0, 1.9, 2.2))
    shear = Shear(index_map(file_grid, grid), file_grid.shape_ijk)
    mapping = GridMapping(grid_weights(grid, upright, smooth=False), file_grid.orthogonal.axes, shear)
    logits = smooth_logits(4, grid.shape_ijk, 2)
    index = np.indices(file_grid.shape_ijk).reshape(3, -1)
    places = shear.to_network @ np.vstack([index, np.ones(index.shape[1])])
    sampled = np.stack(
        [ndimage.map_coordinates(one, places, order=1, mode="nearest", prefilter=False) for one in logits]
    )
    channels, found = both(logits, mapping, walk_axis, decision, tmp_path)
    np.testing.assert_allclose(found, expected(sampled.reshape(-1, *file_grid.shape_ijk), decision), atol=3e-5)
    assert_labels_follow(channels, found, decision)
    box = PatchLocation((2, 1, 3), (7, 9, 6))
    channels, found = both(logits, mapping, walk_axis, decision, tmp_path, box)
    assert_labels_follow(channels, found, decision)
    assert (channels == 0).mean() > 0.3, "outside the box there is background"


@pytest.mark.parametrize("walk_axis", [0, 1, 2])
@pytest.mark.parametrize("decision", ["softmax", "sigmoid"])
def test_what_nobody_looked_at_is_background_for_certain(walk_axis: int, decision: str, tmp_path: Path) -> None:
    """Outside the body's box, outside nnU-Net's crop, and where all windows were left out."""
    nearest = AxisWeights(np.array([[0], [0], [1], [1], [2], [3]]), np.ones((6, 1), np.float32))
    linear = axis_weights(9, 17, 0.5, smooth=False)
    crop = Crop(PatchLocation((2, 0, 1), (6, 17, 17)), (10, 20, 19))
    mapping = GridMapping((nearest, linear, linear), Geometry.from_spacing((6, 17, 17), (1.0,) * 3).axes, None, crop)
    logits = smooth_logits(4, (4, 9, 9), 0) + np.array([-20, 0, 0, 0], np.float32).reshape(4, 1, 1, 1)
    logits[:, :2, :, :] = 0
    channels, found = both(logits, mapping, walk_axis, decision, tmp_path, PatchLocation((0, 2, 0), (4, 5, 9)))
    was_seen = channels > 0
    assert was_seen[6:8].any()
    assert not was_seen[:6].any()
    certain = np.zeros(len(found))
    certain[0] = decision == "softmax"
    outside = np.ones(crop.shape_ijk, dtype=bool)
    outside[6:8, 3:13, 1:18] = False
    assert (found[:, outside] == certain[:, None]).all()
    assert_labels_follow(channels, found, decision)


def test_neither_chunks_nor_the_choice_of_structures_change_anything(monkeypatch, tmp_path: Path) -> None:
    grid, file_grid = Geometry.from_spacing((8, 9, 7), (2.0, 2.0, 2.0)), Geometry.from_spacing((20, 23, 18), (0.8,) * 3)
    mapping = GridMapping(grid_weights(grid, file_grid, smooth=False), file_grid.axes)
    logits = smooth_logits(5, (8, 9, 7), 0)
    _, whole = both(logits, mapping, 1, "softmax", tmp_path)
    monkeypatch.setattr(module, "CHUNK_BYTES", 1)
    np.testing.assert_array_equal(both(logits, mapping, 1, "softmax", tmp_path)[1], whole)
    _, two = both(logits, mapping, 1, "softmax", tmp_path, kept=("s2", "s4"))
    np.testing.assert_array_equal(two, whole[[0, 2, 4]])
    assert list(tmp_path.iterdir()) == [], "the spool has no name"


def test_extreme_logits_are_no_trouble() -> None:
    logits = np.array([[3e38, -200.0, 0.0], [-3e38, 200.0, 0.0]], np.float32)
    with np.errstate(all="raise", under="ignore"):
        assert probabilities_of(logits, "softmax").T.tolist() == [[SURE, 0], [0, SURE], [SURE, 0]]
        assert probabilities_of(logits, "sigmoid").T.tolist() == [[SURE, 0], [0, SURE], [0, 0]]


def test_memory_holds_one_volume_however_many_structures_there_are(monkeypatch, tmp_path: Path) -> None:
    num, grid = 30, Geometry.from_spacing((8, 8, 10), (4.0, 4.0, 4.0))
    file_grid = Geometry.from_spacing((32, 32, 40), (1.0, 1.0, 1.0))
    mapping = GridMapping(grid_weights(grid, file_grid, smooth=False), file_grid.axes)
    logits = smooth_logits(num + 1, grid.shape_ijk, 0)
    monkeypatch.setattr(module, "CHUNK_BYTES", 2**18)
    description, box = model(num, "softmax"), PatchLocation((0, 0, 0), grid.shape_ijk)
    tracemalloc.start()
    collected = collect_probabilities(description, description.labels.names, tmp_path, mapping, 2, box, grid.shape_ijk)
    for number, plane in enumerate(np.moveaxis(logits, 3, 0)):
        collected.add(number, plane)
    for volume in collected.volumes():
        assert volume.shape == file_grid.shape_ijk
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    collected.close()
    num_voxels = np.prod(file_grid.shape_ijk)
    assert peak_bytes < 3 * 2 * num_voxels + 5 * module.CHUNK_BYTES < num * 2 * num_voxels
