"""medseg's checked door for MONAI: ``LoadImaged(keys, reader=CheckedReader())`` refuses what ``medseg`` refuses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import PathLike
from monai.data import ImageReader
from monai.utils import MetaKeys, SpaceKeys

from medseg.io.nifti import read_volume


class CheckedReader(ImageReader):  # type: ignore[misc]  # MONAI is untyped
    """A MONAI ``ImageReader`` over :func:`medseg.io.nifti.read_volume`.

    Raises:
        ReadError, GeometryError: As ``read_volume`` does; MONAI passes them on inside its own ``RuntimeError``.
    """

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """True for .nii and .nii.gz."""
        names = [filename] if isinstance(filename, str | Path) else list(filename)
        return all(str(name).lower().endswith((".nii", ".nii.gz")) for name in names)

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> list[Path]:
        """The files to read, one a channel.

        They are read in :meth:`get_data`: where ``read`` raises, ``LoadImage`` goes on to its default readers, and
        what this door refuses would come in by another.
        """
        names = [data] if isinstance(data, str | Path) else list(data)
        return [Path(str(name)) for name in names]

    def get_data(self, img: Sequence[Path]) -> tuple[np.ndarray, dict[str, Any]]:
        """Array and metadata as MONAI wants them; several volumes are stacked as channels."""
        volumes = [read_volume(path) for path in img]
        first = volumes[0]
        array = first.array[0] if len(volumes) == 1 else np.concatenate([volume.array for volume in volumes])
        affine = first.geometry.affine_ras.copy()
        return array, {
            MetaKeys.AFFINE: affine,
            MetaKeys.ORIGINAL_AFFINE: affine.copy(),
            MetaKeys.SPATIAL_SHAPE: np.array(first.geometry.shape_ijk),
            MetaKeys.SPACE: SpaceKeys.RAS,
            MetaKeys.ORIGINAL_CHANNEL_DIM: "no_channel" if len(volumes) == 1 else 0,
        }
