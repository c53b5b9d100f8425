"""medseg's checked door for MONAI: ``LoadImaged(keys, reader=CheckedReader())`` refuses what ``medseg`` refuses."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import PathLike
from monai.data import ImageReader
from monai.utils import MetaKeys, SpaceKeys

from medseg.io.volume import has_volume_suffix, is_dicom, read_channels


class CheckedReader(ImageReader):  # type: ignore[misc]  # MONAI is untyped
    """A MONAI ``ImageReader`` over :func:`medseg.io.volume.read_channels`, for all formats that medseg reads.

    Args:
        allow: Codes of problems to go on with, as ``read_volume`` has them.

    Raises:
        ReadError, GeometryError: As ``read_channels`` does; MONAI's ``Compose`` passes them on inside a ``RuntimeError``.
    """

    def __init__(self, allow: Collection[str] = ()) -> None:
        self.allow = frozenset(allow)

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """True for volume files, DICOM files and folders."""
        return all(has_volume_suffix(path) or is_dicom(path) for path in self.read(filename))

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> list[Path]:
        """The files to read, one a channel.

        They are read in :meth:`get_data`: where ``read`` raises, ``LoadImage`` goes on to its default readers, and
        what this door refuses would come in by another.
        """
        names = [data] if isinstance(data, str | Path) else list(data)
        return [Path(str(name)) for name in names]

    def get_data(self, img: Sequence[Path]) -> tuple[np.ndarray, dict[str, Any]]:
        """Array and metadata as MONAI wants them; several volumes are stacked as channels."""
        volume = read_channels(img, allow=self.allow)
        is_single = len(volume.array) == 1
        array = volume.array[0] if is_single else volume.array
        affine = volume.geometry.affine_ras.copy()
        return array, {
            MetaKeys.AFFINE: affine,
            MetaKeys.ORIGINAL_AFFINE: affine.copy(),
            MetaKeys.SPATIAL_SHAPE: np.array(volume.geometry.shape_ijk),
            MetaKeys.SPACE: SpaceKeys.RAS,
            MetaKeys.ORIGINAL_CHANNEL_DIM: "no_channel" if is_single else 0,
        }
