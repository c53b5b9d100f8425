from __future__ import annotations

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medseg.core.case import PreparedCase
from medseg.core.geometry import Geometry
from medseg.core.labels import IGNORED
from medseg.data.augment.apply import Augmentation, Augmentd, augment
from medseg.data.augment.intensity import add_noise, apply_gamma, scale_brightness, scale_contrast
from medseg.data.augment.spatial import mirrored
from medseg.data.config import AugmentationConfig, LoaderConfig, SamplingConfig, WindowNormalisation
from medseg.data.loader import SamplePatchd, patch_batches
from medseg.data.sampling import ForegroundVoxels, PatchRequest, case_of, generator, patch_location
from medseg.data.source import MemorySource


def prepared(name: str, shape=(20, 18, 16), seed: int = 0) -> PreparedCase:
    rng = np.random.default_rng(seed)
    classes = np.zeros(shape, np.int16)
    classes[2:5, 3:6, 4:7] = 1
    classes[15:17, 3:6, 4:7] = 2
    grid = Geometry.from_spacing(shape, (1.0, 1.0, 1.0))
    image = rng.standard_normal((1, *shape)).astype(np.float32)
    return PreparedCase(name, image, classes, np.array([True, True, True]), grid, grid, None)


@given(st.integers(1, 7), st.integers(1, 5), st.integers(0, 5))
def test_every_case_comes_once_before_any_comes_again(num_cases: int, batch_size: int, seed: int) -> None:
    numbers = [
        case_of(PatchRequest(n // batch_size, n % batch_size), seed, batch_size, num_cases)
        for n in range(3 * num_cases)
    ]
    for turn in range(3):
        assert sorted(numbers[turn * num_cases : (turn + 1) * num_cases]) == list(range(num_cases))


def test_patches_lie_inside_and_centre_on_structures() -> None:
    case = prepared("a")
    foreground = ForegroundVoxels.of(case)
    assert sorted(foreground.by_class) == [1, 2]
    hits = []
    for number in range(400):
        place = patch_location(generator(0, number), foreground, (20, 18, 16), (8, 8, 8), 1.0)
        assert all(0 <= start <= size - 8 for start, size in zip(place.start_ijk, (20, 18, 16), strict=True))
        found = case.classes[place.to_slices()]
        hits.append([(found == number).any() for number in (1, 2)])
    assert np.array(hits).any(axis=1).all(), "with foreground_fraction 1 each patch holds a structure"
    assert 0.35 < np.array(hits)[:, 0].mean() < 0.65, "structures are drawn uniformly, whatever their size"


def test_ignored_voxels_are_never_centred_on() -> None:
    case = prepared("a")
    classes = np.full_like(case.classes, IGNORED)
    classes[2:5, 3:6, 4:7] = 1
    classes[12:14, 10:12, 8:10] = 0
    foreground = ForegroundVoxels.of(replace(case, classes=classes))
    assert sorted(foreground.by_class) == [1]
    centres = {0: 0, 1: 0}
    for number in range(200):
        place = patch_location(generator(1, number), foreground, (20, 18, 16), (1, 1, 1), 0.5)
        centres[int(classes[place.start_ijk])] += 1  # a patch of one voxel is its centre; no KeyError: none is ignored
    assert min(centres.values()) > 20, "background that somebody decided on is seen too"


@pytest.mark.parametrize("everything", [False, True])
def test_where_all_or_nothing_is_ignored_any_place_will_do(everything: bool) -> None:
    case = prepared("a")
    classes = np.full_like(case.classes, IGNORED) if everything else case.classes
    foreground = ForegroundVoxels.of(replace(case, classes=classes))
    assert foreground.decided is None
    assert sorted(foreground.by_class) == ([] if everything else [1, 2])


@pytest.mark.parametrize("smallest", [IGNORED, 1])
def test_what_lies_beyond_the_case_is_background(smallest: int) -> None:
    case = prepared("a", shape=(20, 8, 8))
    case = replace(case, classes=np.full_like(case.classes, smallest))
    sampler = SamplePatchd([MemorySource(case)], (8, 8, 12), 1, 0, SamplingConfig())
    classes = sampler({"request": PatchRequest(0, 0)})["classes"]
    assert classes[:, :, [0, 1, 10, 11]].unique().tolist() == [0]
    assert classes[:, :, 2:10].unique().tolist() == [smallest]


def test_small_cases_are_centred_in_the_patch() -> None:
    place = patch_location(generator(0), ForegroundVoxels({}), (4, 30, 4), (8, 8, 8), 0.5)
    assert place.start_ijk[0] == -2
    assert place.start_ijk[2] == -2


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_do_not_depend_on_where_the_run_started(num_workers: int) -> None:
    def batches(start: int, workers: int):
        sampler = SamplePatchd(
            [MemorySource(prepared("a", seed=1)), MemorySource(prepared("b", seed=2))],
            (8, 8, 8),
            2,
            7,
            SamplingConfig(),
            everything(),
        )
        return patch_batches(sampler, LoaderConfig(num_workers=workers), start)

    whole, resumed = batches(0, 0), batches(3, num_workers)
    for _ in range(3):
        next(whole)
    for _ in range(3):
        expected, found = next(whole), next(resumed)
        assert expected.case_ids == found.case_ids
        torch.testing.assert_close(expected.image, found.image, rtol=0, atol=0)
        torch.testing.assert_close(expected.classes, found.classes, rtol=0, atol=0)


def test_batches_do_not_depend_on_the_number_of_threads() -> None:
    """They are made by one thread beside the network, or by all between its steps."""
    cases = [MemorySource(prepared("a", seed=1, shape=(70, 70, 70)))]  # beyond 32768 voxels torch shares its work out
    sampler = SamplePatchd(cases, (48, 48, 48), 2, 7, SamplingConfig(), everything())
    before, found = torch.get_num_threads(), []
    try:
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            found.append(list(islice(patch_batches(sampler, LoaderConfig()), 4)))
    finally:
        torch.set_num_threads(before)
    for one, other in [*zip(found[0], found[1], strict=True), *zip(found[0], found[2], strict=True)]:
        assert torch.equal(one.image, other.image)
        assert torch.equal(one.classes, other.classes)


def test_mirroring_left_to_right_swaps_sides_and_is_its_own_inverse() -> None:
    image = torch.arange(24.0).reshape(1, 1, 4, 3, 2)
    channels = torch.tensor([0, 1, 2, 3]).reshape(1, 4, 1, 1).expand(1, 4, 3, 2)
    turned, labels = mirrored(image, channels, [0], (0, 2, 1, 3))
    torch.testing.assert_close(turned, image.flip(2))
    assert labels[0, :, 0, 0].tolist() == [3, 1, 2, 0]
    again, back = mirrored(turned, labels, [0], (0, 2, 1, 3))
    torch.testing.assert_close(again, image)
    torch.testing.assert_close(back, channels)
    _, others = mirrored(image, channels, [1, 2], (0, 2, 1, 3))
    assert others[0, :, 0, 0].tolist() == [0, 1, 2, 3], "only mirroring along R changes sides"


def test_ignored_voxels_are_mirrored_along_and_stay_ignored() -> None:
    classes = torch.tensor([IGNORED, 1, 2, 0], dtype=torch.int16).reshape(1, 4, 1, 1)
    image = torch.zeros(1, 1, 4, 1, 1)
    _, turned = mirrored(image, classes, [0], (0, 2, 1))
    assert turned.flatten().tolist() == [0, 1, 2, IGNORED]
    _, turned = mirrored(image, classes, [1], (0, 2, 1))
    assert turned.flatten().tolist() == [IGNORED, 1, 2, 0]


def test_intensity_changes_do_what_they_say() -> None:
    image = torch.randn(2, 12, 12, 12, generator=torch.Generator().manual_seed(0))
    one, factor = torch.tensor([1.0, 1.0]), torch.tensor([1.0, 0.5])
    torch.testing.assert_close(scale_brightness(image, factor)[1], image[1] * 0.5)
    contrast = scale_contrast(image, factor)
    torch.testing.assert_close(contrast[0], image[0])
    assert float(contrast[1].std()) == pytest.approx(float(0.5 * image[1].std()), rel=1e-3)
    gamma = apply_gamma(image, torch.tensor([1.0, 1.5]))
    torch.testing.assert_close(gamma[0], image[0])
    assert float(gamma[1].mean()) == pytest.approx(float(image[1].mean()), abs=1e-5)
    assert float(gamma[1].std()) == pytest.approx(float(image[1].std()), rel=1e-4)
    torch.testing.assert_close(apply_gamma(image, one), image)
    noisy = add_noise(image[:, None], torch.tensor([0.0, 0.3]), [1, 2])
    torch.testing.assert_close(noisy[0, 0], image[0])
    assert float((noisy[:, 0] - image)[1].std()) == pytest.approx(0.3, rel=0.05)


def everything() -> Augmentation:
    """Every change with probability one half or one."""
    names = [name for name in AugmentationConfig.model_fields if name.endswith("_probability")]
    config = AugmentationConfig(mirror="all_axes", **dict.fromkeys(names, 0.5))
    how = WindowNormalisation(low=-1000, high=1000, mean=0, std=500)
    return Augmentation(config, (0, 2, 1), (1.0, 1.0, 2.0), (how,))


def test_a_batch_is_augmented_like_its_patches_one_by_one() -> None:
    augmentation = replace(everything(), normalisation=(everything().normalisation[0],) * 2)
    image, channels = torch.randn(4, 2, 6, 6, 6), torch.randint(0, 3, (4, 6, 6, 6))
    before = image.clone(), channels.clone()
    for seed in range(8):
        together = augment(image, channels, [generator(seed, b) for b in range(4)], augmentation)
        for b in range(4):
            alone = augment(image[b : b + 1], channels[b : b + 1], [generator(seed, b)], augmentation)
            torch.testing.assert_close(together[0][b], alone[0][0])
            torch.testing.assert_close(together[1][b], alone[1][0])
        assert not together[0].requires_grad
    assert torch.equal(image, before[0]), "the patches handed in are left alone"
    assert torch.equal(channels, before[1])


def test_augmentation_fits_into_a_monai_pipeline() -> None:
    from monai.transforms import Compose, ScaleIntensityd

    pipeline = Compose([Augmentd(everything()), ScaleIntensityd("image")])
    for seed in range(5):
        patch = {
            "image": torch.randn(1, 6, 7, 8),
            "classes": torch.zeros(6, 7, 8, dtype=torch.int16),
            "generator": generator(seed),
        }
        changed = pipeline(patch)
        assert changed["image"].shape == (1, 6, 7, 8)
        assert float(changed["image"].max()) == 1.0
