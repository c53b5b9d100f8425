from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch.nn import functional as F

from medseg.core.case import PreparedCase
from medseg.core.geometry import Geometry
from medseg.core.labels import IGNORED
from medseg.core.patch import PatchLocation
from medseg.data.augment.apply import Augmentation, Augmentd
from medseg.data.augment.spatial import Warp, draw_warp, linear_along, picked, surrounded, warped
from medseg.data.config import AugmentationConfig, LoaderConfig, SamplingConfig
from medseg.data.loader import SamplePatchd, patch_batches
from medseg.data.sampling import PatchRequest, generator
from medseg.data.source import MemorySource

IDENTITY = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
SPACING = (1.0, 1.5, 3.0)


def config(rotation: float = 0.0, scaling: float = 0.0, **more) -> AugmentationConfig:
    names = [name for name in AugmentationConfig.model_fields if name.endswith("_probability")]
    off = dict.fromkeys(names, 0.0) | {"mirror": "none"}
    return AugmentationConfig(**(off | {"rotation_probability": rotation, "scaling_probability": scaling} | more))


def smooth_case(shape=(40, 44, 36), seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    image = ndimage.gaussian_filter(rng.standard_normal((2, *shape)), (0, 2, 2, 2)).astype(np.float32)
    classes = (image[0] > 0.02).astype(np.int16) + 2 * (image[1] > 0.05)
    classes[:, :5] = IGNORED
    return image, classes.astype(np.int16)


def read(image: np.ndarray, classes: np.ndarray, warp: Warp) -> tuple[torch.Tensor, torch.Tensor]:
    part = warp.box.to_slices()
    return torch.from_numpy(image[(slice(None), *part)].copy()), torch.from_numpy(classes[part].copy())


def random_warp(seed: int, place: PatchLocation, **more) -> Warp:
    warp = draw_warp(generator(seed), place, config(1.0, 1.0, **more), SPACING)
    assert warp is not None
    return warp


@given(st.integers(0, 10_000), st.booleans())
@settings(max_examples=20, deadline=None)
def test_a_warped_patch_is_what_scipy_makes_of_the_whole_case(seed: int, per_axis: bool) -> None:
    image, classes = smooth_case()
    place = PatchLocation((14, 16, 12), (9, 12, 10))
    warp = random_warp(seed, place, scaling_is_per_axis=per_axis)
    whole = warp.box.inside(image.shape[1:])
    assert whole == warp.box, "the box lies in this case, and so has no padding"
    found, numbers = warped(*read(image, classes, warp), warp)
    matrix, half = np.array(warp.matrix), (np.array(place.shape_ijk) - 1) / 2
    offset = np.array(place.start_ijk) + half - matrix @ half
    for channel in range(2):
        expected = ndimage.affine_transform(image[channel], matrix, offset, output_shape=place.shape_ijk, order=1)
        np.testing.assert_allclose(found[channel], expected, atol=1e-4)
    expected = ndimage.affine_transform(classes, matrix, offset, output_shape=place.shape_ijk, order=0)
    assert (numbers.numpy() != expected).mean() < 0.002, "but for points half way between voxels"


@pytest.mark.parametrize("per_axis", [False, True])
def test_scaling_alone_is_what_the_general_way_gives(per_axis: bool) -> None:
    image, classes = smooth_case()
    for seed in range(5):
        place = PatchLocation((12, 13, 14), (15, 16, 9))
        warp = draw_warp(generator(seed), place, config(0.0, 1.0, scaling_is_per_axis=per_axis), SPACING)
        assert warp is not None
        assert not warp.turns
        first, *rest = warp.matrix
        general = Warp(((first[0], 1e-12, 0.0), *rest), place)
        assert general.turns
        for mine, other in zip(
            warped(*read(image, classes, warp), warp), warped(*read(image, classes, general), general), strict=True
        ):
            torch.testing.assert_close(mine, other, atol=1e-5, rtol=0)


def test_torchs_own_sampling_agrees() -> None:
    image, classes = smooth_case()
    warp = random_warp(3, PatchLocation((12, 15, 10), (16, 14, 12)))
    volume, numbers = read(image, classes, warp)
    found, _ = warped(volume, numbers, warp)
    offsets = torch.stack(torch.meshgrid(*(torch.from_numpy(o) for o in warp.offsets), indexing="ij"), dim=-1)
    positions = offsets @ torch.tensor(warp.matrix, dtype=torch.float64).T + torch.from_numpy(warp.middle)
    grid = ((2 * positions + 1) / torch.tensor(warp.box.shape_ijk) - 1).flip(-1).float()
    expected = F.grid_sample(volume[None], grid[None], align_corners=False)[0]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_nothing_drawn_or_no_angle_and_factor_one_changes_nothing() -> None:
    image, classes = smooth_case()
    place = PatchLocation((3, 4, 5), (12, 11, 10))
    assert draw_warp(generator(0), place, config(), SPACING) is None
    warp = Warp(IDENTITY, place)
    assert warp.box == place
    found, numbers = warped(*read(image, classes, warp), warp)
    np.testing.assert_array_equal(found, image[(slice(None), *place.to_slices())])
    np.testing.assert_array_equal(numbers, classes[place.to_slices()])


@pytest.mark.parametrize("size", [10, 11])
def test_a_quarter_turn_is_rot90(size: int) -> None:
    image, classes = smooth_case()
    place = PatchLocation((8, 9, 7), (size, size, size))
    plain, labels = image[(slice(None), *place.to_slices())], classes[place.to_slices()]
    about_s = Warp(((0.0, -1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)), place)
    found, numbers = warped(*read(image, classes, about_s), about_s)
    np.testing.assert_allclose(found, np.rot90(plain, -1, axes=(1, 2)), atol=1e-5)
    np.testing.assert_array_equal(numbers, np.rot90(labels, -1, axes=(0, 1)))


def test_angles_are_those_of_the_patient_not_of_the_voxels() -> None:
    """A ball in millimetres stays one, however coarse an axis is."""
    shape, spacing = (48, 32, 20), np.array([1.0, 1.5, 3.0])
    points = np.stack(np.indices(shape), axis=-1) * spacing
    middle = (np.array(shape) - 1) / 2 * spacing
    ball = np.linalg.norm(points - middle, axis=-1) < 15
    for seed in range(4):
        warp = draw_warp(generator(seed), PatchLocation((0, 0, 0), shape), config(1.0), SPACING)
        assert warp is not None
        np.testing.assert_allclose(np.linalg.norm(np.array(warp.matrix) / spacing * spacing[:, None], axis=0), 1.0)
        image, classes = torch.from_numpy(ball.astype(np.float32))[None], torch.from_numpy(ball.astype(np.int16))
        _, numbers = warped(*surrounded(image, classes, warp.place, warp.box), warp)
        overlap = 2 * (numbers.numpy() * ball).sum() / (numbers.sum() + ball.sum())
        assert overlap > 0.94


def test_where_the_case_has_voxels_no_corner_is_empty() -> None:
    shape = (40, 40, 40)
    grid = Geometry.from_spacing(shape, SPACING)
    image = np.zeros((1, *shape), np.float32)
    image[0, 0, 0, 0] = -5  # air, far from every patch
    classes = np.ones(shape, np.int16)
    case = PreparedCase("a", image, classes, np.array([True, True]), grid, grid, None)
    augmentation = Augmentation(config(1.0, 1.0, scaling_factor=(1.0, 1.2)), (0, 1), SPACING)
    sampler = SamplePatchd([MemorySource(case)], (12, 12, 12), 1, 0, SamplingConfig(), augmentation)
    for step in range(40):
        sampled = sampler({"request": PatchRequest(step, 0)})
        box = sampled["warp"].box
        patch = Augmentd(augmentation)(sampled)
        assert patch["image"].shape == (1, 12, 12, 12)
        assert patch["classes"].shape == (12, 12, 12)
        if box.inside(shape) == box and min(box.start_ijk) > 0:
            assert float(patch["image"].abs().max()) < 1e-6
            assert patch["classes"].unique().tolist() == [1]


def test_what_turns_into_view_from_beyond_the_patch_is_air_and_background() -> None:
    image, classes = torch.ones(2, 8, 8, 8), torch.ones(8, 8, 8, dtype=torch.int16)
    image[0, 0, 0, 0], image[1, 0, 0, 0] = -3.0, -1.0
    whole = PatchLocation((0, 0, 0), (8, 8, 8))
    larger, numbers = surrounded(image, classes, whole, PatchLocation((-2, 1, 0), (12, 5, 9)))
    assert larger.shape == (2, 12, 5, 9)
    assert larger[:, 0, 0, 0].tolist() == [-3.0, -1.0]
    assert numbers[:2].unique().tolist() == [0]
    torch.testing.assert_close(larger[:, 2:10, :, :8], image[:, :, 1:6])
    turned = Augmentd(Augmentation(config(1.0, rotation_degrees=45.0), (0, 1)))(
        {"image": image, "classes": classes, "generator": generator(1)}
    )
    assert float(turned["image"][0].min()) == -3.0
    assert turned["classes"].unique().tolist() == [0, 1]


def test_no_label_is_invented_and_structures_keep_their_volume() -> None:
    """What is two voxels thin too, where the largest interpolated membership loses a part."""
    classes = np.zeros((40, 40, 40), np.int16)
    classes[19:21, 19:21, 10:30] = 3
    classes[5:10, 5:10, 5:10] = IGNORED
    image = (classes == 3).astype(np.float32)[None]
    place = PatchLocation((6, 6, 6), (28, 28, 28))
    volumes, linear = [], []
    for seed in range(60):
        warp = draw_warp(generator(seed), place, config(1.0), (1.0, 1.0, 1.0))
        assert warp is not None
        held = surrounded(
            torch.from_numpy(image), torch.from_numpy(classes), PatchLocation((0, 0, 0), (40, 40, 40)), warp.box
        )
        membership, numbers = warped(*held, warp)
        assert set(numbers.unique().tolist()) <= {IGNORED, 0, 3}
        volumes.append(int((numbers == 3).sum()))
        linear.append(int((membership > 0.5).sum()))
    assert np.mean(volumes) == pytest.approx(80, rel=0.03)
    assert np.mean(linear) < 0.95 * np.mean(volumes)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_interpolating_along_an_axis_is_numpys(axis: int) -> None:
    rng = np.random.default_rng(0)
    volume = rng.standard_normal((2, 7, 8, 9)).astype(np.float32)
    positions = rng.uniform(-1, 10, 13).astype(np.float32)
    size = volume.shape[axis + 1]
    found = linear_along(torch.from_numpy(volume), axis, torch.from_numpy(positions))
    expected = np.apply_along_axis(lambda line: np.interp(positions, np.arange(size), line), axis + 1, volume)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    chosen = torch.tensor([3, 0, 3])
    torch.testing.assert_close(
        picked(torch.from_numpy(volume)[0], axis, chosen), torch.from_numpy(volume)[0].index_select(axis, chosen)
    )


def test_a_patch_does_not_depend_on_its_process_or_batch() -> None:
    image, classes = smooth_case()
    grid = Geometry.from_spacing(classes.shape, SPACING)
    case = PreparedCase("a", image, np.abs(classes), np.ones(4, bool), grid, grid, None)
    augmentation = Augmentation(
        AugmentationConfig(rotation_probability=0.5, scaling_probability=0.5), (0, 1, 2, 3), SPACING
    )

    def batches(batch_size: int, workers: int):
        sampler = SamplePatchd([MemorySource(case)], (8, 9, 10), batch_size, 5, SamplingConfig(), augmentation)
        return patch_batches(sampler, LoaderConfig(num_workers=workers))

    pairs, here, there = batches(2, 0), batches(3, 0), batches(3, 1)
    for _ in range(4):
        two, three, other = next(pairs), next(here), next(there)
        torch.testing.assert_close(two.image, three.image[:2], rtol=0, atol=0)
        torch.testing.assert_close(two.classes, three.classes[:2], rtol=0, atol=0)
        torch.testing.assert_close(three.image, other.image, rtol=0, atol=0)
