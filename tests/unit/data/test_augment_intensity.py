from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import ndimage
from torch.nn import functional as F

from medseg.data.augment.intensity import (
    apply_gamma,
    apply_inverted_gamma,
    blur,
    change_intensities,
    draw_intensities,
    lower_resolution,
    scale_contrast,
)
from medseg.data.config import AugmentationConfig
from medseg.data.sampling import generator

NAMES = ("noise", "blur", "brightness", "contrast", "low_resolution", "gamma", "inverted_gamma")


@pytest.fixture
def volumes() -> torch.Tensor:
    return torch.randn(3, 14, 11, 9, generator=torch.Generator().manual_seed(0)) * 2 + 1


def test_blur_is_scipys(volumes: torch.Tensor) -> None:
    sigma = torch.tensor([[0.5, 0.7, 1.0], [1.0, 0.6, 0.9], [0.0, 0.0, 0.0]])
    found = blur(volumes, sigma)
    for number in range(2):
        radius = [round(3 * value) for value in sigma[number].tolist()]
        expected = ndimage.gaussian_filter(volumes[number].numpy(), sigma[number].numpy(), mode="mirror", radius=radius)
        np.testing.assert_allclose(found[number], expected, atol=1e-5)
    assert torch.equal(found[2], volumes[2]), "no blur is none"
    assert torch.equal(found[:1], blur(volumes[:1], sigma[:1])), "whatever else is blurred with it"
    torch.testing.assert_close(blur(torch.full((1, 2, 3, 1), 7.0), sigma[:1]), torch.full((1, 2, 3, 1), 7.0))


def test_low_resolution_is_torchs_there_and_back(volumes: torch.Tensor) -> None:
    found = lower_resolution(volumes, torch.tensor([0.5, 0.73, 1.0]))
    for number, factor in enumerate((0.5, 0.73, 1.0)):
        shape = [round(size * factor) for size in volumes.shape[1:]]
        few = F.interpolate(volumes[None, number : number + 1], shape, mode="nearest-exact")
        expected = F.interpolate(few, volumes.shape[1:], mode="trilinear")[0, 0]
        torch.testing.assert_close(found[number], expected)


def test_contrast_and_gamma_are_what_their_formulas_say(volumes: torch.Tensor) -> None:
    for x, found in zip(volumes, scale_contrast(volumes, torch.tensor([1.2, 0.8, 1.25])), strict=True):
        assert float(found.min()) >= float(x.min())
        assert float(found.max()) <= float(x.max())
    x, exponent = volumes[1], 1.4
    share = (x - x.min()) / (x.max() - x.min())
    raised = share**exponent
    expected = (raised - raised.mean()) / raised.std() * x.std() + x.mean()
    factors = torch.tensor([1.0, exponent, 0.7])
    torch.testing.assert_close(apply_gamma(volumes, factors)[1], expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(apply_inverted_gamma(volumes, factors), -apply_gamma(-volumes, factors))
    constant = torch.full((1, 4, 4, 4), 2.0)
    torch.testing.assert_close(apply_gamma(constant, torch.tensor([1.3])), constant)


def test_nothing_due_changes_nothing_and_channels_change_by_themselves() -> None:
    image = torch.randn(2, 2, 6, 6, 6)
    off = AugmentationConfig(**{f"{name}_probability": 0.0 for name in NAMES})
    nothing = [draw_intensities(generator(b), 2, off) for b in range(2)]
    assert change_intensities(image, nothing) is image or torch.equal(change_intensities(image, nothing), image)
    blurred = off.model_copy(update={"blur_probability": 1.0})
    seen = set()
    for seed in range(12):
        found = change_intensities(image, [draw_intensities(generator(seed), 2, blurred), nothing[1]])
        assert torch.equal(found[1], image[1])
        seen.add(tuple(not torch.equal(found[0, c], image[0, c]) for c in range(2)))
    assert len(seen) == 4, "both, either or neither channel of a blurred patch"


def test_changes_come_as_often_as_they_should_and_within_their_ranges() -> None:
    config = AugmentationConfig()
    drawn = [draw_intensities(generator(seed), 1, config) for seed in range(1500)]
    for name, expected in (
        ("brightness", 0.15),
        ("contrast", 0.15),
        ("resolution", 0.125),
        ("gamma", 0.3),
        ("inverted_gamma", 0.1),
    ):
        values = np.array([getattr(change, name)[0] for change in drawn])
        assert (values != 1).mean() == pytest.approx(expected, abs=0.03)
        changed = values[values != 1]
        assert changed.min() >= 0.5
        assert changed.max() <= 1.5
        if name != "resolution":
            assert (changed < 1).mean() == pytest.approx(0.5, abs=0.1)
    assert np.mean([change.noise_std > 0 for change in drawn]) == pytest.approx(0.1, abs=0.02)
    assert np.mean([change.blur_sigma_voxels[0, 0] > 0 for change in drawn]) == pytest.approx(0.1, abs=0.02)


def test_one_changes_probability_does_not_change_what_another_draws() -> None:
    never = draw_intensities(generator(4), 2, AugmentationConfig(blur_probability=0.0, gamma_probability=1.0))
    always = draw_intensities(generator(4), 2, AugmentationConfig(blur_probability=1.0, gamma_probability=1.0))
    assert never.noise_seed == always.noise_seed
    np.testing.assert_array_equal(never.gamma, always.gamma)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("scaling_factor", (0.0, 1.0)),
        ("scaling_factor", (1.0, 9.0)),
        ("blur_sigma_voxels", (2.0, 1.0)),
        ("low_resolution_factor", (0.5, 1.5)),
        ("gamma_exponent", (-1.0, 1.0)),
        ("rotation_degrees", 200.0),
    ],
)
def test_impossible_ranges_are_refused(name: str, value: object) -> None:
    with pytest.raises(ValidationError, match=name):
        AugmentationConfig(**{name: value})
