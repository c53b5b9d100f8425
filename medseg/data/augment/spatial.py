"""Rotation, scaling and mirroring of patches: one affine, one resampling.

The affine is drawn before anything is read, so that the whole region a turned patch shows is read from its case and no
corner is empty where the case has voxels. Legend: B batch · C channels · I, J, K axes in R, A, S order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Integer, Shaped
from torch import Tensor
from torch.nn import functional as F

from medseg.core.geometry import Spacing3
from medseg.core.labels import IGNORED
from medseg.core.patch import PatchLocation
from medseg.core.shapes import BCIJK, BIJK, CIJK, IJK
from medseg.data.config import AugmentationConfig

PIECE_VOXELS = 2**16
"""Turned at once on a CPU, so that what is passed from step to step stays in its cache: over twice as fast at 96³."""

Matrix3 = tuple[tuple[float, float, float], tuple[float, float, float], tuple[float, float, float]]


@dataclass(frozen=True)
class Warp:
    """How a patch is turned and scaled about its centre.

    Attributes:
        matrix: From a voxel's offset to the patch's centre, to the offset of the point it shows [both in voxels].
        place: Of the patch in its case; its shape is that of the result.
    """

    matrix: Matrix3
    place: PatchLocation

    @property
    def box(self) -> PatchLocation:
        """The smallest box that holds every point the patch shows, and the voxels to interpolate between."""
        half = (np.array(self.place.shape_ijk) - 1) / 2
        centre = np.array(self.place.start_ijk) + half
        reach = np.abs(np.array(self.matrix)) @ half
        start = np.floor(centre - reach).astype(int)
        i, j, k = (np.ceil(centre + reach).astype(int) + 1 - start).tolist()
        return PatchLocation((int(start[0]), int(start[1]), int(start[2])), (i, j, k))

    @property
    def turns(self) -> bool:
        """Whether there is more to it than scaling along the axes."""
        matrix = np.array(self.matrix)
        return bool(np.any(matrix != np.diag(np.diag(matrix))))

    @property
    def middle(self) -> np.ndarray:
        """Position of the patch's centre in the box [voxels]."""
        half = (np.array(self.place.shape_ijk) - 1) / 2
        return np.asarray(half + np.array(self.place.start_ijk) - np.array(self.box.start_ijk))

    @property
    def offsets(self) -> list[np.ndarray]:
        """Along each axis, where the patch's voxels lie from its centre [voxels]."""
        return [np.arange(size) - (size - 1) / 2 for size in self.place.shape_ijk]


def draw_warp(
    rng: np.random.Generator, place: PatchLocation, config: AugmentationConfig, spacing_ijk_mm: Spacing3
) -> Warp | None:
    """Draw rotation and scaling of a patch; None where neither is due.

    Args:
        rng: Of this patch.
        place: Of the patch.
        config: Probabilities and ranges.
        spacing_ijk_mm: Of the grid: angles are those of the patient, not of the voxels.
    """
    turned, scaled = rng.random(2) < (config.rotation_probability, config.scaling_probability)
    angles = np.deg2rad(rng.uniform(-config.rotation_degrees, config.rotation_degrees, 3))
    factors = rng.uniform(*config.scaling_factor, 3)
    if not (turned or scaled):
        return None
    rotation = _rotation(angles) if turned else np.eye(3)
    scales = (factors if config.scaling_is_per_axis else np.full(3, factors[0])) if scaled else np.ones(3)
    spacing = np.array(spacing_ijk_mm)
    i, j, k = ((float(row[0]), float(row[1]), float(row[2])) for row in rotation * scales * spacing / spacing[:, None])
    return Warp((i, j, k), place)


def warped(
    image_CIJK: Float[Tensor, CIJK], classes_IJK: Integer[Tensor, IJK], warp: Warp
) -> tuple[Float[Tensor, "channels i j k"], Integer[Tensor, "i j k"]]:
    """Turn and scale a patch: image by linear interpolation, classes by the nearest voxel.

    Nearest, because it neither invents nor loses anything: ignored voxels stay apart, and a structure keeps its volume
    on average. The largest of linearly interpolated memberships is smoother, but wears away what is two voxels thin.

    Args:
        image_CIJK: What lies in ``warp.box``.
        classes_IJK: The same of the class numbers.
        warp: Drawn for this patch.
    """
    if not warp.turns:
        return _scaled(image_CIJK, classes_IJK, warp)
    image_CIJK, classes_IJK = image_CIJK.contiguous(), classes_IJK.contiguous()
    size_i, size_j, size_k = warp.place.shape_ijk
    image = image_CIJK.new_empty((len(image_CIJK), size_i, size_j * size_k))
    classes = classes_IJK.new_empty((size_i, size_j * size_k))
    along_i, across = _position_terms(warp, image.device)
    num_planes = max(1, PIECE_VOXELS // (size_j * size_k)) if image.device.type == "cpu" else size_i
    for start in range(0, size_i, num_planes):
        planes = slice(start, start + num_planes)
        positions = [
            (of_i[planes, None] + of_jk).clamp_(0, size - 1)
            for of_i, of_jk, size in zip(along_i, across, warp.box.shape_ijk, strict=True)
        ]
        classes[planes] = _nearest(classes_IJK, positions)
        _linear(image_CIJK, positions, image[:, planes])
    return image.reshape(-1, size_i, size_j, size_k), classes.reshape(size_i, size_j, size_k)


def surrounded(
    image_CIJK: Float[Tensor, CIJK], classes_IJK: Integer[Tensor, IJK], have: PatchLocation, want: PatchLocation
) -> tuple[Float[Tensor, "channels i j k"], Integer[Tensor, "i j k"]]:
    """What lies in another box, as far as it is known: beyond, each channel has its smallest value and the class is 0."""
    padding = [
        amount
        for first, last, start, stop in reversed(
            list(zip(have.start_ijk, have.stop_ijk, want.start_ijk, want.stop_ijk, strict=True))
        )
        for amount in (first - start, stop - last)
    ]
    lowest = image_CIJK.amin(dim=(1, 2, 3), keepdim=True)
    return F.pad(image_CIJK - lowest, padding) + lowest, F.pad(classes_IJK, padding)


def picked(volume: Shaped[Tensor, "*channels i j k"], axis: int, index: Integer[Tensor, " points"]) -> Tensor:
    """Some of the planes across a spatial axis (0, 1, 2), in this order."""
    if axis < 2:
        return volume.index_select(volume.ndim - 3 + axis, index)
    # Along the last axis, where voxels lie side by side, torch is several times faster when told of each voxel.
    starts = torch.arange(0, volume.numel(), volume.shape[-1], device=volume.device)[:, None]
    return volume.reshape(-1).index_select(0, (starts + index).reshape(-1)).reshape(*volume.shape[:-1], len(index))


def linear_along(
    volume_CIJK: Float[Tensor, CIJK], axis: int, positions: Float[Tensor, " points"]
) -> Float[Tensor, "channels i j k"]:
    """Interpolate linearly along one spatial axis (0, 1, 2); beyond the first and last voxel their values go on.

    Args:
        volume_CIJK: Values.
        axis: To interpolate along.
        positions: Where [voxels].
    """
    size = volume_CIJK.shape[axis + 1]
    positions = positions.clamp(0, size - 1)
    before = positions.floor().long()
    weight = (positions - before).reshape([-1 if dim == axis else 1 for dim in range(3)])
    after = picked(volume_CIJK, axis, (before + 1).clamp_max(size - 1))
    return picked(volume_CIJK, axis, before).lerp_(after, weight)


def draw_mirror_axes(rng: np.random.Generator, config: AugmentationConfig) -> list[int]:
    """Draw along which of the axes R, A, S (0, 1, 2) a patch is mirrored."""
    flips = rng.random(3) < 0.5
    return [axis for axis in mirror_axes(config) if flips[axis]]


def mirror_axes(config: AugmentationConfig) -> tuple[int, ...]:
    """The axes R, A, S (0, 1, 2) along which patches may be mirrored."""
    match config.mirror:
        case "none":
            return ()
        case "left_right":
            return (0,)
        case "all_axes":
            return (0, 1, 2)


def mirrored(
    image_BCIJK: Float[Tensor, BCIJK],
    classes_BIJK: Integer[Tensor, BIJK],
    axes: Sequence[int],
    mirrored_classes: Sequence[int],
) -> tuple[Float[Tensor, BCIJK], Integer[Tensor, BIJK]]:
    """Mirror patches along some of the axes R, A, S (0, 1, 2).

    Along R the patient's sides change places, so left and right structures swap their class numbers too;
    ignored voxels stay ignored.

    Args:
        image_BCIJK: Patches.
        classes_BIJK: Their class numbers.
        axes: Spatial axes to mirror.
        mirrored_classes: ``mirrored_classes[c]`` is what class ``c`` becomes.
    """
    if not axes:
        return image_BCIJK, classes_BIJK
    image_BCIJK = image_BCIJK.flip([axis + 2 for axis in axes])
    classes_BIJK = classes_BIJK.flip([axis + 1 for axis in axes])
    if 0 in axes and tuple(mirrored_classes) != tuple(range(len(mirrored_classes))):
        # IGNORED is -1: the table begins with it.
        swap = torch.as_tensor((IGNORED, *mirrored_classes), dtype=classes_BIJK.dtype, device=classes_BIJK.device)
        index = (classes_BIJK.to(torch.int32) - IGNORED).reshape(-1)
        classes_BIJK = swap.index_select(0, index).reshape(classes_BIJK.shape)
    return image_BCIJK, classes_BIJK


def _rotation(angles_rad: np.ndarray) -> np.ndarray:
    """Rotation about R, then A, then S, as nnU-Net composes them about its three axes."""
    result = np.eye(3)
    for axis, angle in enumerate(angles_rad):
        first, second = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[[first, second], [first, second]] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        result = turn @ result
    return result


def _position_terms(warp: Warp, device: torch.device) -> tuple[list[Tensor], list[Tensor]]:
    """Each coordinate of the positions in the box, as a sum: of a term along I, and of one across (J and K in a row)."""
    matrix, (of_i, of_j, of_k) = np.array(warp.matrix), warp.offsets
    along_i = [middle + to[0] * of_i for middle, to in zip(warp.middle, matrix, strict=True)]
    across = [(to[1] * of_j[:, None] + to[2] * of_k).ravel() for to in matrix]
    along_i, across = (
        [torch.from_numpy(term.astype(np.float32)).to(device) for term in terms] for terms in (along_i, across)
    )
    return along_i, across


def _index(whole: Sequence[Tensor], shape: Sequence[int]) -> Integer[Tensor, " points"]:
    """Numbers of voxels of a volume of this shape, counted from its first."""
    i, j, k = (coordinate.to(torch.int32) for coordinate in whole)
    return i.mul_(shape[1]).add_(j).mul_(shape[2]).add_(k).reshape(-1)


def _nearest(classes_IJK: Integer[Tensor, IJK], positions: Sequence[Tensor]) -> Integer[Tensor, "planes voxels"]:
    index = _index([position.round() for position in positions], classes_IJK.shape)
    return classes_IJK.reshape(-1).index_select(0, index).reshape(positions[0].shape)


def _linear(image_CIJK: Float[Tensor, CIJK], positions: Sequence[Tensor], result: Tensor) -> None:
    """Interpolate between the eight voxels around each position; the result has channels in front of their axes."""
    sizes = image_CIJK.shape[1:]
    before = [position.floor().clamp_max_(max(0, size - 2)) for position, size in zip(positions, sizes, strict=True)]
    weight_i, weight_j, weight_k = (p.sub_(b).reshape(-1) for p, b in zip(positions, before, strict=True))
    index = _index(before, sizes)
    step_i, step_j, step_k = (
        step if size > 1 else 0 for step, size in zip((sizes[1] * sizes[2], sizes[2], 1), sizes, strict=True)
    )
    for volume, interpolated in zip(image_CIJK.flatten(1), result, strict=True):
        # Of the four lines along K around each position, the values at its K; then along J; then along I.
        lines = [
            volume[first:].index_select(0, index).lerp_(volume[first + step_k :].index_select(0, index), weight_k)
            for first in (0, step_j, step_i, step_i + step_j)
        ]
        near, far = lines[0].lerp_(lines[1], weight_j), lines[2].lerp_(lines[3], weight_j)
        torch.lerp(near, far, weight_i, out=interpolated.view(-1))


def _scaled(
    image_CIJK: Float[Tensor, CIJK], classes_IJK: Integer[Tensor, IJK], warp: Warp
) -> tuple[Float[Tensor, "channels i j k"], Integer[Tensor, "i j k"]]:
    """Without rotation, linear interpolation falls apart into three axes, which is several times faster."""
    for axis, offsets in enumerate(warp.offsets):
        along = (warp.middle[axis] + warp.matrix[axis][axis] * offsets).astype(np.float32)
        positions = torch.from_numpy(along).to(image_CIJK.device)
        image_CIJK = linear_along(image_CIJK, axis, positions)
        classes_IJK = picked(classes_IJK, axis, positions.round().long().clamp(0, classes_IJK.shape[axis] - 1))
    return image_CIJK, classes_IJK
