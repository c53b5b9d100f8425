"""What lies around the patient: a couch, noise in the air, the constant that pads a round field of view.

None of it is anatomy, all of it differs from scanner to scanner, and a network that has only seen clean air takes it
for anatomy. Only for CT, whose numbers mean the same everywhere. Legend: C channels · I, J, K axes in R, A, S order, so
that the couch lies at small J.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from medseg.core.geometry import Spacing3
from medseg.core.shapes import CIJK, IJK
from medseg.data.config import AugmentationConfig, Normalisation, WindowNormalisation

AIR_HU = -1000.0
"""By definition of the Hounsfield unit."""

BODY_HU = -500.0
"""Half way between air and water: where the skin is."""

ABOVE_WINDOW_SHARE, FAT_HU = 0.02, -150.0
"""Where the window's lower end is above :data:`BODY_HU`, air is what lies within this share of the window above it. Where
that would take fat for air, nobody can tell where the skin is, and nothing changes."""

PADDING_HU = (-1024.0, -2000.0, -2048.0, -3024.0)
"""What scanners write outside their field of view: stored 0 or -2000 before the intercept, and GE's -3024."""

COUCH_GAP_MM = (0.0, 40.0)
"""Between the lowest part of the body in the patch and the couch: mattress, head rest, or a body part further away."""

TOUCHING_SHARE = 0.5
"""Of couches touch the body."""

COUCH_THICKNESS_MM, SHELL_THICKNESS_MM = (10.0, 80.0), (1.0, 5.0)
"""Treatment couches are 50 to 75 mm thick; boards and head rests are thinner. Carbon shells have 1 to 3 mm."""

SHELL_HU, CORE_HU = (-700.0, 300.0), (-980.0, -700.0)
"""Carbon fibre lies around -500 to 0 HU, plastics around 100, foam from -980 on."""

SOLID_SHARE = 0.3
"""Of couches have no core: boards, gel mattresses, sheets."""

COUCH_HALF_WIDTH_MM, COUCH_SHIFT_MM = (200.0, 270.0), 120.0
"""Couches are 400 to 530 mm wide; a patch may lie this far off their middle."""

CURVED_SHARE, CURVE_RADIUS_MM = 0.5, (300.0, 1500.0)
"""Diagnostic couches are troughs."""

SHORT_SHARE, SHORTEST = 0.5, 0.1
"""Of couches are as short as this share of a patch: head rests and wedges, which lie closer to the body than a couch."""


@dataclass(frozen=True)
class Couch:
    """A plate behind the patient, along the scanner's axes.

    Attributes:
        gap_mm: Below the lowest part of the body.
        thickness_mm, shell_mm: Of the plate and of its shell.
        shell_hu, core_hu: Of its materials.
        shift_mm, half_width_mm: Where its middle is along R, from the patch's, and how far it reaches.
        bend_per_mm: It rises by this times the square of the distance from its middle.
        stretch: From where to where it reaches along S, in shares of the patch.
    """

    gap_mm: float
    thickness_mm: float
    shell_mm: float
    shell_hu: float
    core_hu: float
    shift_mm: float
    half_width_mm: float
    bend_per_mm: float
    stretch: tuple[float, float]


@dataclass(frozen=True)
class FieldOfView:
    """A circle across the patient's long axis, outside of which a scanner wrote a constant.

    Attributes:
        centre: Along R and A, in shares of the patch, from its middle.
        radius: In shares of the patch's half diagonal across R and A.
        padding_hu: The constant.
    """

    centre: tuple[float, float]
    radius: float
    padding_hu: float


@dataclass(frozen=True)
class OutsideChanges:
    """What happens outside the body in one patch; 0 or None where nothing does."""

    air_noise_std_hu: float
    noise_seed: int
    couch: Couch | None
    field_of_view: FieldOfView | None

    def __bool__(self) -> bool:
        return self.air_noise_std_hu > 0 or self.couch is not None or self.field_of_view is not None


def draw_outside(rng: np.random.Generator, config: AugmentationConfig) -> OutsideChanges:
    """Draw the changes of a patch. Every number is drawn whether it is due or not, so none depends on another's chance."""
    noisy, lying, padded = rng.random(3) < (
        config.air_noise_probability,
        config.couch_probability,
        config.padding_probability,
    )
    noise_std, seed = rng.uniform(*config.air_noise_std_hu), int(rng.integers(2**31))
    couch = _draw_couch(rng)
    centre, radius = rng.uniform(-0.1, 0.1, 2), rng.uniform(0.5, 1.0)
    padding = float(rng.choice(PADDING_HU))
    return OutsideChanges(
        air_noise_std_hu=noise_std if noisy else 0.0,
        noise_seed=seed,
        couch=couch if lying else None,
        field_of_view=FieldOfView((float(centre[0]), float(centre[1])), radius, padding) if padded else None,
    )


def change_outside(
    image_CIJK: Float[Tensor, CIJK],
    changes: OutsideChanges,
    normalisation: Sequence[Normalisation],
    spacing_ijk_mm: Spacing3,
) -> Float[Tensor, CIJK]:
    """Change what lies around the patient; voxels of the body, and air inside it, stay as they are.

    Args:
        image_CIJK: A normalised patch that is not mirrored yet.
        changes: Drawn for it.
        normalisation: Of each channel; those without a window are left alone. None at all: no channel is changed.
        spacing_ijk_mm: Of its grid.
    """
    if not changes or not any(isinstance(how, WindowNormalisation) for how in normalisation):
        return image_CIJK
    channels = list(image_CIJK)
    for index, how in enumerate(normalisation):
        if isinstance(how, WindowNormalisation):
            channels[index] = _changed(channels[index], changes, how, spacing_ijk_mm)
    return torch.stack(channels)


def air_behind(is_air_IJK: Bool[Tensor, IJK]) -> Bool[Tensor, "i j k"]:
    """Air behind the body: what is reached from the patch's hindmost face along A."""
    return _run(is_air_IJK, 1)


def air_around(is_air_IJK: Bool[Tensor, IJK]) -> Bool[Tensor, "i j k"]:
    """Air around the body: what is reached from the patch's faces along R or A.

    Air that a body surrounds within its axial plane (airways, bowel, lungs) is not, unless the patch's edge opens it.
    """
    around = _run(is_air_IJK, 0) | _run(is_air_IJK, 1)
    return around | _run(is_air_IJK.flip(0), 0).flip(0) | _run(is_air_IJK.flip(1), 1).flip(1)


def _run(is_air_IJK: Bool[Tensor, IJK], axis: int) -> Bool[Tensor, IJK]:
    """Where there was nothing but air since the first plane; known for twice as many planes with each turn."""
    size, known = is_air_IJK.shape[axis], 1
    while known < size:
        rest, before = is_air_IJK.narrow(axis, known, size - known), is_air_IJK.narrow(axis, 0, size - known)
        is_air_IJK = torch.cat([is_air_IJK.narrow(axis, 0, known), rest & before], dim=axis)
        known *= 2
    return is_air_IJK


def _changed(
    image_IJK: Float[Tensor, IJK], changes: OutsideChanges, how: WindowNormalisation, spacing_ijk_mm: Spacing3
) -> Float[Tensor, IJK]:
    threshold_hu = max(BODY_HU, how.low + ABOVE_WINDOW_SHARE * (how.high - how.low))
    if threshold_hu > FAT_HU:
        return image_IJK
    is_air, field = image_IJK <= (threshold_hu - how.mean) / how.std, changes.field_of_view
    around = air_around(is_air) if changes.air_noise_std_hu > 0 or field else is_air
    if changes.air_noise_std_hu > 0:
        rng = torch.Generator(device=image_IJK.device).manual_seed(changes.noise_seed)
        noise = torch.randn(image_IJK.shape, generator=rng, device=image_IJK.device)
        # Positive: what a scanner measured below air was cut off when it stored the scan, or by the window.
        noisy = _normalised(noise.abs_().mul_(changes.air_noise_std_hu).add_(AIR_HU), how)
        image_IJK = torch.where(around, torch.maximum(image_IJK, noisy), image_IJK)
    if changes.couch is not None:
        image_IJK = _with_couch(image_IJK, air_behind(is_air), changes.couch, how, spacing_ijk_mm)
    if field is not None:
        padding = min(max(field.padding_hu, how.low), how.high)
        beyond = around & _is_beyond(field, image_IJK.shape, image_IJK.device, spacing_ijk_mm)
        image_IJK = image_IJK.masked_fill(beyond, (padding - how.mean) / how.std)
    return image_IJK


def _normalised(image_hu: Float[Tensor, "i j k"], how: WindowNormalisation) -> Float[Tensor, "i j k"]:
    """In place."""
    return image_hu.clamp_(how.low, how.high).sub_(how.mean).div_(how.std)


def _with_couch(
    image_IJK: Float[Tensor, IJK],
    behind: Bool[Tensor, IJK],
    couch: Couch,
    how: WindowNormalisation,
    spacing_ijk_mm: Spacing3,
) -> Float[Tensor, IJK]:
    """Nothing changes where this stretch of the patch holds no lowest part of a body to lay on a couch."""
    size_i, size_j, size_k = image_IJK.shape
    start, stop = (round(share * size_k) for share in couch.stretch)
    stretch = slice(min(start, size_k - 1), max(stop, start + 1))
    lowest = int(behind[:, :, stretch].sum(dim=1).min())  # voxels behind the body
    if lowest in (0, size_j):
        return image_IJK
    values = _normalised(_couch_hu(couch, lowest, (size_i, size_j), spacing_ijk_mm).to(image_IJK.device), how)
    image_IJK = image_IJK.clone()
    part = image_IJK[:, :, stretch]
    part.copy_(torch.where(behind[:, :, stretch], torch.maximum(part, values), part))
    return image_IJK


def _couch_hu(couch: Couch, lowest: int, shape_ij: tuple[int, int], spacing_ijk_mm: Spacing3) -> Float[Tensor, "i j 1"]:
    """The couch in air [HU], under a body that begins at this voxel along A."""
    size_i, size_j = shape_ij
    r_mm = (torch.arange(size_i) - (size_i - 1) / 2) * spacing_ijk_mm[0] - couch.shift_mm
    step = spacing_ijk_mm[1]
    top = (lowest - 0.5) * step - couch.gap_mm + couch.bend_per_mm * r_mm.square()
    depth = top[:, None] - torch.arange(size_j) * step
    core = _share(depth, couch.shell_mm, couch.thickness_mm - couch.shell_mm, step)
    shell = _share(depth, 0.0, couch.thickness_mm, step) - core
    hu = AIR_HU + shell * (couch.shell_hu - AIR_HU) + core * (couch.core_hu - AIR_HU)
    return torch.where(r_mm[:, None].abs() <= couch.half_width_mm, hu, AIR_HU)[..., None]


def _share(depth_mm: Tensor, upper_mm: float, lower_mm: float, step_mm: float) -> Tensor:
    """Of each voxel, how much lies between two depths."""
    upper, lower = (depth_mm - step_mm / 2).clamp_min(upper_mm), (depth_mm + step_mm / 2).clamp_max(lower_mm)
    return (lower - upper).clamp_min(0) / step_mm


def _is_beyond(
    field: FieldOfView, shape: torch.Size, device: torch.device, spacing_ijk_mm: Spacing3
) -> Bool[Tensor, "i j 1"]:
    extent = [shape[axis] * spacing_ijk_mm[axis] for axis in range(2)]
    r_mm, a_mm = (
        (torch.arange(shape[axis], device=device) + 0.5) * spacing_ijk_mm[axis]
        - (0.5 + field.centre[axis]) * extent[axis]
        for axis in range(2)
    )
    distance: Tensor = torch.hypot(r_mm[:, None], a_mm[None])
    return (distance > field.radius * math.hypot(*extent) / 2)[..., None]


def _draw_couch(rng: np.random.Generator) -> Couch:
    touches, is_solid, is_curved = rng.random(3) < (TOUCHING_SHARE, SOLID_SHARE, CURVED_SHARE)
    gap, thickness, shell = (rng.uniform(*bounds) for bounds in (COUCH_GAP_MM, COUCH_THICKNESS_MM, SHELL_THICKNESS_MM))
    shell_hu, core_hu = rng.uniform(*SHELL_HU), rng.uniform(*CORE_HU)
    is_short, ends = rng.random() < SHORT_SHARE, np.sort(rng.random(2))
    half_width, curve_radius = rng.uniform(*COUCH_HALF_WIDTH_MM), rng.uniform(*CURVE_RADIUS_MM)
    return Couch(
        gap_mm=0.0 if touches else gap,
        thickness_mm=thickness,
        shell_mm=shell,
        shell_hu=shell_hu,
        core_hu=shell_hu if is_solid else core_hu,
        shift_mm=rng.uniform(-COUCH_SHIFT_MM, COUCH_SHIFT_MM),
        half_width_mm=half_width,
        bend_per_mm=1 / (2 * curve_radius) if is_curved else 0.0,
        stretch=(float(ends[0]) * (1 - SHORTEST), float(ends[1]) * (1 - SHORTEST) + SHORTEST)
        if is_short
        else (0.0, 1.0),
    )
