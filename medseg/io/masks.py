"""A binary mask for each structure beside the label map: ``NAME/STRUCTURE.nii.gz``, a folder for each scan, as TotalSegmentator's users know it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

import numpy as np
from jaxtyping import Integer

from medseg.core.errors import ConfigError
from medseg.core.labels import LabelSchema
from medseg.core.shapes import IJK
from medseg.core.volume import LabelMap

SUFFIX = ".nii.gz"

DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(10))}
"""Names that Windows keeps for devices, whatever follows after a dot."""

LONGEST_NAME_BYTES = 200
"""File systems take 255 bytes."""


def mask_names(schema: LabelSchema) -> dict[str, str]:
    """The file name of each structure's mask, one that every system takes.

    Raises:
        ConfigError: Two structures would give one file, on a system that does not tell capitals apart.
    """
    names = {name: _file_name(name) for name in schema.names}
    taken: dict[str, str] = {}
    for name, file in names.items():
        other = taken.setdefault(file.casefold(), name)
        if other != name:
            raise ConfigError(
                f"the masks of '{other}' and '{name}' would both be called {file}: ask for one of them with --structures, "
                "or predict without --one-file-each"
            )
    return names


def masks_of(label_map: LabelMap, schema: LabelSchema) -> Iterator[tuple[str, LabelMap]]:
    """Each structure's name and mask: 1 in all voxels that belong to it, a region's in those of the regions inside it too.

    Args:
        label_map: Predicted.
        schema: Of its values.
    """
    for channel, name in enumerate(schema.names, start=1):
        table = np.zeros(int(schema.values.max()) + 1, np.uint8)
        table[schema.values[schema.counts_as[:, channel]]] = 1
        yield name, LabelMap(_looked_up(label_map.array, table), label_map.geometry, label_map.record)


def _looked_up(array: Integer[np.ndarray, IJK], table: Integer[np.ndarray, " values"]) -> Integer[np.ndarray, IJK]:
    mask = np.empty(array.shape, table.dtype)
    for plane, target in zip(np.moveaxis(array, -1, 0), np.moveaxis(mask, -1, 0), strict=True):
        target[...] = table[plane]  # NumPy turns what it indexes with into 64 bits: not the whole volume at once
    return mask


def _file_name(name: str) -> str:
    """Letters, digits and ``. + ( ) -`` of a name; what else it holds becomes underscores."""
    safe = re.sub(r"[^\w.+()-]+", "_", unicodedata.normalize("NFC", name)).lstrip(".")
    safe = safe.encode(errors="ignore")[:LONGEST_NAME_BYTES].decode(errors="ignore")
    if not safe or safe.split(".")[0].casefold() in DEVICES:
        safe = f"_{safe}"
    return safe + SUFFIX
