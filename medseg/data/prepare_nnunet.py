"""A scan on the network's grid as nnU-Net brings it there, for networks that nnU-Net trained. No torch.

Where it differs from :func:`medseg.data.prepare.prepare`: only the box of voxels that are not 0 is prepared; it keeps the
file's axes; intensities are normalised before they are interpolated, with cubic splines; the new grid shares the box's
edges; and what is smaller than the network's window is surrounded with 0.

Source: nnunetv2 2.8.1, ``preprocessing/preprocessors/default_preprocessor.py``, ``cropping/cropping.py``,
``resampling/default_resampling.py``, ``normalization/default_normalization_schemes.py`` and
``inference/export_prediction.py``. Deviations: splines are evaluated in float32, axis by axis; mean and standard deviation
are summed in float64; a grid has at least one voxel along each axis.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from medseg.core.case import Case
from medseg.core.geometry import Axes, Geometry, Shape3, Spacing3
from medseg.core.patch import PatchLocation
from medseg.core.shapes import CIJK, IJK
from medseg.data.config import (
    NnunetPreparation,
    NonzeroZScoreNormalisation,
    Normalisation,
    PlanewiseInterpolation,
    WindowNormalisation,
)
from medseg.data.plan import ANISOTROPIC_RATIO, Plan
from medseg.data.prepare import require_channels, scale_of
from medseg.data.resample import AxisWeights
from medseg.data.restore import Crop, GridMapping, MappedCase
from medseg.data.spline import edge_weights, resize_axis

FILE_AXES = Axes((0, 1, 2), (False, False, False))
"""No turn at all."""


def prepare_as_nnunet(case: Case, plan: Plan, how: NnunetPreparation) -> MappedCase:
    """Bring a scan onto the network's grid. A sheared grid is taken for an upright one, as nnU-Net does.

    Args:
        case: As read; a reference that it has is left behind, because only networks that are trained already get here.
        plan: Spacing, patch and normalisation, along the axes of the network's grid.
        how: The rest.

    Raises:
        ReadError: The image has another number of channels than the plan.
    """
    require_channels(case, len(plan.normalisation))
    file_grid = case.image.geometry
    turned, axes = (file_grid.canonical, file_grid.axes) if how.orientation == "patient" else (file_grid, FILE_AXES)
    whole = axes.to_canonical(case.image.array)
    nonzero = (whole != 0).any(axis=0)
    box = _box(nonzero)
    cropped = np.array(whole[(slice(None), *box.to_slices())], np.float32, order="C")
    _normalise(cropped, plan.normalisation, nonzero[box.to_slices()])
    shape = new_shape(box.shape_ijk, turned.spacing_ijk_mm, plan.spacing_ijk_mm)
    planes = plane_axis(how.image, turned.spacing_ijk_mm, plan.spacing_ijk_mm)
    place = _in_window(shape, plan.patch_ijk)
    grid = _grid(turned, box, place, plan.patch_ijk)
    image = np.zeros((len(cropped), *grid.shape_ijk), np.float32)
    for channel, target in zip(cropped, image, strict=True):
        target[place.to_slices()] = _resized(channel, shape, how.image, planes)
    weights = _way_back(box.shape_ijk, shape, how.logits, plan.spacing_ijk_mm, turned.spacing_ijk_mm)
    i, j, k = (
        AxisWeights(axis.indices + lead, axis.weights) for axis, lead in zip(weights, place.start_ijk, strict=True)
    )
    crop = None if box.shape_ijk == turned.shape_ijk else Crop(_in_file(box, axes, file_grid), file_grid.shape_ijk)
    return MappedCase(
        id=case.id,
        image=image,
        classes=None,
        annotated=case.annotated,
        geometry=grid,
        file_geometry=file_grid,
        file_record=case.image.record,
        mapping=GridMapping((i, j, k), axes, crop=crop),
    )


def new_shape(shape: Shape3, spacing_mm: Spacing3, new_spacing_mm: Spacing3) -> Shape3:
    """Voxels along each axis at another spacing; halves are rounded to even numbers, as Python does."""
    i, j, k = (
        max(1, round(old / new * size)) for old, new, size in zip(spacing_mm, new_spacing_mm, shape, strict=True)
    )
    return i, j, k


def plane_axis(how: PlanewiseInterpolation, source_mm: Spacing3, target_mm: Spacing3) -> int | None:
    """The axis across which planes are treated one by one; None where there is none, or two are equally coarse."""
    if how.planes == "never":
        return None
    for spacing in (source_mm, target_mm):
        if how.planes == "always" or max(spacing) / min(spacing) > ANISOTROPIC_RATIO:
            coarsest = [axis for axis, size in enumerate(spacing) if size == max(spacing)]
            return coarsest[0] if len(coarsest) == 1 else None
    return None


def _box(nonzero: Bool[np.ndarray, IJK]) -> PatchLocation:
    """The box around what is not 0; all of an image that is 0 everywhere."""
    start, size = [], []
    for axis in range(3):
        found = np.flatnonzero(nonzero.any(axis=tuple(other for other in range(3) if other != axis)))
        first, last = (int(found[0]), int(found[-1])) if len(found) else (0, nonzero.shape[axis] - 1)
        start.append(first)
        size.append(last - first + 1)
    return PatchLocation((start[0], start[1], start[2]), (size[0], size[1], size[2]))


def _normalise(
    image: Float[np.ndarray, CIJK], normalisation: Sequence[Normalisation], nonzero: Bool[np.ndarray, IJK]
) -> None:
    """In place. Holes in what is not 0 belong to it."""
    inside = nonzero
    if any(isinstance(how, NonzeroZScoreNormalisation) for how in normalisation):
        inside = ndimage.binary_fill_holes(nonzero)
    for index, how in enumerate(normalisation):
        if isinstance(how, NonzeroZScoreNormalisation):
            mean, std = scale_of(image[index][inside], how)
            image[index][inside] = (image[index][inside] - mean) / std
            continue
        if isinstance(how, WindowNormalisation):
            np.clip(image[index], how.low, how.high, out=image[index])
        mean, std = scale_of(image[index], how)
        image[index] -= mean
        image[index] /= std


def _resized(
    channel: Float[np.ndarray, IJK], shape: Shape3, how: PlanewiseInterpolation, planes: int | None
) -> Float[np.ndarray, "new_i new_j new_k"]:
    """One channel with another number of voxels. What splines overshoot is cut off: of each plane, or of the volume."""
    if channel.shape == shape:
        return channel
    within = [axis for axis in range(3) if axis != planes]
    across = None if planes is None else tuple(within)
    lowest, highest = (bound(axis=across, keepdims=True) for bound in (channel.min, channel.max))
    for axis in sorted(within, key=lambda axis: shape[axis] / channel.shape[axis]):  # what shrinks most comes first
        channel = resize_axis(channel, axis, shape[axis], how.within)
    np.clip(channel, lowest, highest, out=channel)
    return channel if planes is None else resize_axis(channel, planes, shape[planes], how.across)


def _way_back(
    box_shape: Shape3, shape: Shape3, how: PlanewiseInterpolation, spacing_mm: Spacing3, file_spacing_mm: Spacing3
) -> list[AxisWeights]:
    """Weights of the network's voxels, without its margins, for those of the box."""
    planes = plane_axis(how, spacing_mm, file_spacing_mm)
    rules = [how.across if axis == planes else how.within for axis in range(3)]
    return [
        edge_weights(num_source, num_target, "nearest" if rule == "nearest" else "linear")
        for num_source, num_target, rule in zip(shape, box_shape, rules, strict=True)
    ]


def _in_window(shape: Shape3, window: Shape3) -> PatchLocation:
    """Where an image lies on a grid that is at least as large as the window, in its middle."""
    i, j, k = (max(0, wanted - size) // 2 for size, wanted in zip(shape, window, strict=True))
    return PatchLocation((i, j, k), shape)


def _grid(turned: Geometry, box: PatchLocation, place: PatchLocation, window: Shape3) -> Geometry:
    """The network's grid: the image's voxels at their place, over the extent of a box of another grid; and what surrounds them."""
    scale = np.array(box.shape_ijk) / np.array(place.shape_ijk)
    to_turned = np.diag([*scale, 1.0])
    to_turned[:3, 3] = np.array(box.start_ijk) + (scale - 1) / 2 - scale * np.array(place.start_ijk)
    i, j, k = (max(size, wanted) for size, wanted in zip(place.shape_ijk, window, strict=True))
    return Geometry(turned.affine_ras @ to_turned, (i, j, k))


def _in_file(box: PatchLocation, axes: Axes, file_grid: Geometry) -> PatchLocation:
    """A box of the turned grid in the file's own axes."""
    start, size = [0, 0, 0], [0, 0, 0]
    for turned, (axis, flip) in enumerate(zip(axes.order, axes.flips, strict=True)):
        first, size[axis] = box.start_ijk[turned], box.shape_ijk[turned]
        start[axis] = file_grid.shape_ijk[axis] - first - size[axis] if flip else first
    return PatchLocation((start[0], start[1], start[2]), (size[0], size[1], size[2]))
