from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from medseg.core.patch import PatchLocation
from medseg.data.augment.outside import (
    AIR_HU,
    Couch,
    OutsideChanges,
    air_around,
    air_behind,
    change_outside,
    draw_outside,
)
from medseg.data.config import AugmentationConfig, WindowNormalisation, ZScoreNormalisation
from medseg.data.prepare import prepare
from medseg.data.sampling import generator
from medseg.data.source import MemorySource
from medseg.io.case import read_case
from medseg.io.dataset import read_dataset
from medseg.io.resources import sample_folder

WINDOW = WindowNormalisation(low=-1100.0, high=1500.0, mean=100.0, std=400.0)
SPACING = (4.0, 4.0, 3.0)
ALWAYS = AugmentationConfig(air_noise_probability=1.0, couch_probability=1.0, padding_probability=1.0)
NOTHING = OutsideChanges(0.0, 0, None, None)
COUCH = Couch(0.0, 12.0, 4.0, 0.0, -900.0, 0.0, 500.0, 0.0, (0.0, 1.0))


def to_hu(image: torch.Tensor) -> torch.Tensor:
    return image * WINDOW.std + WINDOW.mean


def patient(shape=(40, 30, 8)) -> tuple[torch.Tensor, torch.Tensor]:
    """An elliptic body with a windpipe, as a normalised channel; and where it is, windpipe included."""
    i, j = np.meshgrid(np.arange(shape[0]), np.arange(shape[1]), indexing="ij")
    body = ((i - 20) / 12) ** 2 + ((j - 18) / 8) ** 2 < 1
    windpipe = (i - 20) ** 2 + (j - 20) ** 2 < 5
    hu = np.where(body & ~windpipe, 40.0, AIR_HU)
    image = np.repeat(((hu - WINDOW.mean) / WINDOW.std)[..., None], shape[2], axis=2).astype(np.float32)
    return torch.from_numpy(image)[None], torch.from_numpy(np.repeat(body[..., None], shape[2], axis=2))


def test_only_what_is_outside_the_body_changes() -> None:
    image, body = patient()
    changed = torch.zeros_like(body)
    for seed in range(30):
        changes = draw_outside(generator(seed), ALWAYS)
        found = change_outside(image, changes, (WINDOW,), SPACING)
        assert torch.equal(found[0][body], image[0][body]), "body and windpipe stay as they are"
        assert float(to_hu(found).min()) >= WINDOW.low - 1e-3
        changed |= found[0] != image[0]
    assert changed[~body].float().mean() > 0.99, "and all air around it changes sooner or later"


def test_a_couch_lies_behind_the_body_and_has_its_layers() -> None:
    image, body = patient()
    found = to_hu(change_outside(image, replace(NOTHING, couch=COUCH), (WINDOW,), SPACING))[0]
    lowest = int(body.any(dim=2).any(dim=0).float().argmax())
    middle = found[20, :, 4]
    assert middle[lowest - 1] == pytest.approx(0.0, abs=0.1), "the shell touches the body"
    assert middle[lowest - 2] == pytest.approx(-900.0, abs=0.1)
    assert middle[lowest - 3] == pytest.approx(0.0, abs=0.1)
    assert middle[lowest - 4] == pytest.approx(AIR_HU, abs=0.1)
    away = to_hu(change_outside(image, replace(NOTHING, couch=replace(COUCH, gap_mm=6.0)), (WINDOW,), SPACING))[0]
    expected = [-1000.0, -500.0, -450.0, -450.0, -500.0]  # voxels half in one layer, half in the next
    np.testing.assert_allclose(away[20, [lowest - n for n in range(1, 6)], 4], expected, atol=0.1)
    narrow = change_outside(image, replace(NOTHING, couch=replace(COUCH, half_width_mm=20.0)), (WINDOW,), SPACING)
    assert torch.equal(narrow[0, :10], image[0, :10])
    short = change_outside(image, replace(NOTHING, couch=replace(COUCH, stretch=(0.25, 0.5))), (WINDOW,), SPACING)
    assert (short != image)[0].any(dim=0).any(dim=0).tolist() == [False, False, True, True] + 4 * [False]


def test_no_couch_is_drawn_where_the_patch_ends_in_the_body_or_holds_none() -> None:
    image, _ = patient()
    inside = image[:, :, 14:]
    assert torch.equal(change_outside(inside, replace(NOTHING, couch=COUCH), (WINDOW,), SPACING), inside)
    air = image[:, :5]
    assert torch.equal(change_outside(air, replace(NOTHING, couch=COUCH), (WINDOW,), SPACING), air)


def test_air_noise_is_positive_and_as_strong_as_drawn() -> None:
    image, body = patient((40, 30, 40))
    found = to_hu(change_outside(image, replace(NOTHING, air_noise_std_hu=50.0), (WINDOW,), SPACING))[0]
    noise = found[~body] - AIR_HU
    assert float(noise.min()) >= -1e-3
    assert float(noise.square().mean().sqrt()) == pytest.approx(50.0, rel=0.03)


def test_padding_is_seen_only_as_far_as_the_window_goes() -> None:
    image, body = patient()
    config = AugmentationConfig(air_noise_probability=0.0, couch_probability=0.0, padding_probability=1.0)
    seen = set()
    for seed in range(20):
        found = to_hu(change_outside(image, draw_outside(generator(seed), config), (WINDOW,), SPACING))[0]
        seen |= {round(value) for value in found[~body].unique().tolist()}
    assert seen == {-1100, -1024, -1000}
    higher = WindowNormalisation(low=-900.0, high=1500.0, mean=100.0, std=400.0)
    floor = image.clamp_min((higher.low - higher.mean) / higher.std)
    assert torch.equal(change_outside(floor, draw_outside(generator(0), config), (higher,), SPACING), floor)


def test_only_channels_with_a_window_change() -> None:
    image, _ = patient()
    both, changes = torch.cat([image, image]), draw_outside(generator(1), ALWAYS)
    found = change_outside(both, changes, (WINDOW, ZScoreNormalisation()), SPACING)
    assert not torch.equal(found[0], both[0])
    assert torch.equal(found[1], both[1])
    assert change_outside(both, changes, (ZScoreNormalisation(), ZScoreNormalisation()), SPACING) is both
    assert change_outside(both, changes, (), SPACING) is both


def test_nothing_changes_where_fat_looks_like_air() -> None:
    image, _ = patient()
    narrow = WindowNormalisation(low=-120.0, high=200.0, mean=40.0, std=60.0)
    cut = (to_hu(image).clamp(narrow.low, narrow.high) - narrow.mean) / narrow.std
    assert torch.equal(change_outside(cut, replace(NOTHING, couch=COUCH), (narrow,), SPACING), cut)


@pytest.mark.parametrize("size", [1, 2, 4, 7])
def test_patches_of_few_slices_have_couches_too(size: int) -> None:
    image, _ = patient((40, 30, size))
    for seed in range(40):
        assert change_outside(image, draw_outside(generator(seed), ALWAYS), (WINDOW,), SPACING).shape == image.shape


def test_air_around_is_what_is_seen_from_the_faces() -> None:
    image, body = patient()
    is_air = to_hu(image)[0] < -500
    behind, around = air_behind(is_air), air_around(is_air)
    hollow = body & is_air
    assert not (behind & ~around).any()
    assert not (around & body).any(), "not the windpipe"
    assert hollow.any()
    assert behind[0].all()
    for i in range(0, 40, 7):
        line = body[i, :, 0].numpy()
        first = int(line.argmax()) if line.any() else 30
        np.testing.assert_array_equal(behind[i, :, 0], np.arange(30) < first)


def test_a_real_patient_keeps_every_voxel_of_the_body() -> None:
    dataset = read_dataset(sample_folder())
    case = prepare(read_case(dataset.cases[0], dataset), dataset.labels, (5.0, 5.0, 5.0), (WINDOW,))
    source = MemorySource(case)
    image = torch.from_numpy(source.read(PatchLocation((0, 0, 0), case.geometry.shape_ijk))[0])
    hu = to_hu(image)[0]
    assert case.classes is not None
    inside = torch.from_numpy(case.classes > 0) | (hu > -400)
    num_couches = 0
    for seed in range(10):
        found = change_outside(image, draw_outside(generator(seed), ALWAYS), (WINDOW,), (5.0, 5.0, 5.0))
        assert torch.equal(found[0][inside], image[0][inside])
        num_couches += int((to_hu(found)[0] - hu > 400).sum() > 200)
    assert num_couches >= 3
