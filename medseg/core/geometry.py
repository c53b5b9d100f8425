"""Where voxels lie in the body: one affine from index to world, and what follows from it.

World coordinates are RAS millimetres: x grows towards the patient's Right, y towards
Anterior, z towards Superior. Array axes are I, J, K in the array's own order (NIfTI: x, y, z). Nothing here flips an
array by the name of a plane: orientation is read off the affine.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float

from medseg.core.errors import GeometryError
from medseg.core.shapes import AFFINE
from medseg.core.units import MAX_SPACING_MM, MIN_SPACING_MM, MM3_PER_ML

SAME_GRID_TOLERANCE_VOXELS = 1e-2
"""Two grids are the same when no corner differs by more than this part of a voxel: float32 headers round to ~1e-4."""

ORTHOGONAL_TOLERANCE_VOXELS = 0.1
"""A grid counts as orthogonal where shear moves no voxel by more than this: float32 headers and rounded direction cosines
shear a little."""

Shape3 = tuple[int, int, int]
Spacing3 = tuple[float, float, float]


@dataclass(frozen=True)
class Axes:
    """How to turn an array's axes into R, A, S order: ``canonical = array.transpose(order)`` and then flips.

    Attributes:
        order: ``order[a]`` is the array axis that runs along world axis ``a``.
        flips: True where that axis runs against the world axis.
    """

    order: Shape3
    flips: tuple[bool, bool, bool]

    def to_canonical(self, array: np.ndarray) -> np.ndarray:
        """View of an array ``(..., I, J, K)`` with its last three axes in R, A, S order and direction."""
        lead = array.ndim - 3
        turned: np.ndarray = array.transpose(*range(lead), *(lead + axis for axis in self.order))
        mirrored: np.ndarray = turned[self._mirroring]
        return mirrored

    def from_canonical(self, array: np.ndarray) -> np.ndarray:
        """The inverse of :meth:`to_canonical`."""
        lead = array.ndim - 3
        straight: np.ndarray = array[self._mirroring]
        inverse = np.argsort(self.order)
        turned: np.ndarray = straight.transpose(*range(lead), *(lead + int(axis) for axis in inverse))
        return turned

    @property
    def _mirroring(self) -> tuple[Any, ...]:
        return (..., *(slice(None, None, -1 if flip else 1) for flip in self.flips))


@dataclass(frozen=True, eq=False)
class Geometry:
    """The grid of a volume.

    Attributes:
        affine_ras: Maps the homogeneous index ``(i, j, k, 1)`` of a voxel's centre to RAS millimetres.
        shape_ijk: Number of voxels along each axis, all positive.

    Raises:
        GeometryError: The affine is not finite or not invertible, the spacing is implausible, or the shape empty.
    """

    affine_ras: Float[np.ndarray, AFFINE]
    shape_ijk: Shape3

    def __post_init__(self) -> None:
        if len(self.shape_ijk) != 3 or min(self.shape_ijk) < 1:
            raise GeometryError(
                f"expected three axes of at least one voxel, found shape {self.shape_ijk}", code="geometry.shape"
            )
        if not np.isfinite(self.affine_ras).all():
            raise GeometryError(
                "the affine holds NaN or infinite numbers: the header is damaged", code="geometry.affine"
            )
        columns = self.affine_ras[:3, :3]
        lengths = np.linalg.norm(columns, axis=0)
        if not ((lengths >= MIN_SPACING_MM) & (lengths <= MAX_SPACING_MM)).all():
            raise GeometryError(
                f"expected a spacing of {MIN_SPACING_MM} to {MAX_SPACING_MM} mm, found "
                f"{tuple(round(float(length), 4) for length in lengths)}: correct the header",
                code="geometry.spacing",
            )
        if abs(np.linalg.det(columns / lengths)) < 1e-3:
            raise GeometryError(
                "the affine is singular: two axes of the grid run in one direction", code="geometry.affine"
            )

    @classmethod
    def from_spacing(cls, shape_ijk: Shape3, spacing_ijk_mm: Spacing3) -> Geometry:
        """An axis-aligned RAS grid with its first voxel at the origin."""
        return cls(np.diag([*spacing_ijk_mm, 1.0]).astype(np.float64), shape_ijk)

    @cached_property
    def spacing_ijk_mm(self) -> Spacing3:
        """Distance between neighbouring voxel centres along each array axis [mm]."""
        i, j, k = (float(length) for length in np.linalg.norm(self.affine_ras[:3, :3], axis=0))
        return i, j, k

    @property
    def voxel_volume_ml(self) -> float:
        """Volume of one voxel [ml]."""
        return float(abs(np.linalg.det(self.affine_ras[:3, :3]))) / MM3_PER_ML

    @property
    def num_voxels(self) -> int:
        """Number of voxels."""
        return int(np.prod(self.shape_ijk))

    @cached_property
    def axes(self) -> Axes:
        """The closest way to turn the array into R, A, S order.

        Axes are matched to world directions so that the summed absolute cosine is largest, over all six assignments;
        greedy matching can fail for obliques.
        """
        cosines = self.affine_ras[:3, :3] / np.linalg.norm(self.affine_ras[:3, :3], axis=0)
        orders: list[Shape3] = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
        order = max(orders, key=lambda order: sum(abs(float(cosines[world, axis])) for world, axis in enumerate(order)))
        flip_r, flip_a, flip_s = (bool(cosines[world, axis] < 0) for world, axis in enumerate(order))
        return Axes(order, (flip_r, flip_a, flip_s))

    @cached_property
    def canonical(self) -> Geometry:
        """This grid as the array ``axes.to_canonical(array)`` has it: same voxels in space, axes in R, A, S order."""
        axes = self.axes
        turn = np.zeros((4, 4))
        turn[3, 3] = 1.0
        for world, (axis, flip) in enumerate(zip(axes.order, axes.flips, strict=True)):
            turn[axis, world] = -1.0 if flip else 1.0
            turn[axis, 3] = self.shape_ijk[axis] - 1 if flip else 0.0
        i, j, k = (self.shape_ijk[axis] for axis in axes.order)
        return Geometry(self.affine_ras @ turn, (i, j, k))

    @cached_property
    def is_orthogonal(self) -> bool:
        """Whether the three axes stand at right angles, within what moves no voxel by more than a tenth of a voxel."""
        directions = self.affine_ras[:3, :3] / np.linalg.norm(self.affine_ras[:3, :3], axis=0)
        cosines = np.abs(directions.T @ directions - np.eye(3))
        extent_mm = np.array(self.spacing_ijk_mm) * (np.array(self.shape_ijk) - 1)
        shift_mm = cosines * extent_mm[None, :]
        return bool((shift_mm / np.array(self.spacing_ijk_mm)[:, None] <= ORTHOGONAL_TOLERANCE_VOXELS).all())

    @cached_property
    def orthogonal(self) -> Geometry:
        """The smallest orthogonal grid of the same voxel size that holds every voxel centre of a sheared one.

        The first axis keeps its direction, the second stays in the plane of the first two; along the third, the spacing
        is the distance between planes: with gantry tilt, that is less than the distance of the voxels' centres.
        The grid itself where it is orthogonal already.
        """
        if self.is_orthogonal:
            return self
        directions, upper = np.linalg.qr(self.affine_ras[:3, :3])
        signs = np.sign(np.diag(upper))
        directions, spacing_mm = directions * signs, np.abs(np.diag(upper))
        corners = np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)]) * (np.array(self.shape_ijk) - 1)
        along_mm = (corners @ self.affine_ras[:3, :3].T) @ directions
        first_mm, last_mm = along_mm.min(axis=0), along_mm.max(axis=0)
        i, j, k = (int(count) for count in np.ceil((last_mm - first_mm) / spacing_mm - 1e-6) + 1)
        affine = np.eye(4)
        affine[:3, :3] = directions * spacing_mm
        affine[:3, 3] = self.affine_ras[:3, 3] + directions @ first_mm
        return Geometry(affine, (i, j, k))

    def resampled(self, spacing_ijk_mm: Spacing3) -> Geometry:
        """A grid with the same axes, centre and (rounded up) extent, but another spacing.

        Voxel counts are rounded up, so that the new grid covers the old one. Where the spacing already agrees
        to 0.1 %, the axis is left as it is, so that an identity stays an identity.
        """
        new_shape, scale = [], []
        for size, old, new in zip(self.shape_ijk, self.spacing_ijk_mm, spacing_ijk_mm, strict=True):
            same = abs(new / old - 1.0) < 1e-3
            new_shape.append(size if same else max(1, int(np.ceil(size * old / new - 1e-6))))
            scale.append(1.0 if same else new / old)
        affine = self.affine_ras.copy()
        affine[:3, :3] = affine[:3, :3] * np.array(scale)
        old_centre = self.affine_ras @ np.append((np.array(self.shape_ijk) - 1) / 2, 1.0)
        new_centre = affine @ np.append((np.array(new_shape) - 1) / 2, 1.0)
        affine[:3, 3] += (old_centre - new_centre)[:3]
        return Geometry(affine, (new_shape[0], new_shape[1], new_shape[2]))

    def difference(self, other: Geometry) -> str | None:
        """What differs between two grids, in words; None where they are the same within tolerance."""
        if self.shape_ijk != other.shape_ijk:
            return f"shape {self.shape_ijk} against {other.shape_ijk}"
        corners = np.array([[i, j, k, 1.0] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
        corners[:, :3] *= np.array(self.shape_ijk) - 1
        offset_mm = np.linalg.norm((corners @ (self.affine_ras - other.affine_ras).T)[:, :3], axis=1).max()
        if offset_mm > SAME_GRID_TOLERANCE_VOXELS * min(self.spacing_ijk_mm):
            return f"the same shape, but corners {offset_mm:.3f} mm apart"
        return None
