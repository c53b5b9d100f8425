"""One prepared case in one file: chunked, compressed, checksummed, and read by box. No torch.

A file is a fixed start, a header in JSON, and chunks that blosc2 has packed, one after the other: of each channel of the
image, of the classes, and of the voxels that patches are centred on. Every byte of it is covered by a checksum, which is
compared when the file is opened; afterwards a box costs the chunks that it touches.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, BinaryIO

import blosc2
import numpy as np
from jaxtyping import Bool, Float, Integer, Shaped

from medseg.core.case import CompactCase, CompactChannel
from medseg.core.errors import ResourceError
from medseg.core.geometry import Geometry, Shape3
from medseg.core.patch import PatchLocation
from medseg.core.shapes import ANY
from medseg.data.prepare import normalised
from medseg.data.sampling import ForegroundVoxels

START = struct.Struct("<8sII")
"""Signature, length and checksum of the header."""

SIGNATURE = b"medseg\x00\x01"
"""The last byte is the version of the format."""

CHUNK_IJK = (32, 32, 32)
"""What is unpacked together: of int16 it fits into a level 2 cache, and larger chunks are hardly smaller when packed."""

READ_BYTES = 2**20
"""Of a file at once, when its checksum is compared."""

DECIDED = 0
"""Stands for :attr:`ForegroundVoxels.decided` among the classes' numbers, of which background is never one."""

Box = tuple[slice, ...]


@dataclass(frozen=True, eq=False)
class Section:
    """One array of a file, in chunks.

    Attributes:
        dtype, shape: Of the array.
        chunk: Edges of a chunk; those at the far sides are cut.
        start: Where the first begins in the file [bytes].
        sizes: Of each, packed, in C order [bytes].
    """

    dtype: str
    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    start: int
    sizes: tuple[int, ...]

    @cached_property
    def offsets(self) -> Integer[np.ndarray, " chunks"]:
        """Where each chunk begins in the file [bytes]."""
        return self.start + np.cumsum([0, *self.sizes[:-1]])

    def read(self, file: BinaryIO, box: Box | None = None) -> Shaped[np.ndarray, ANY]:
        """The values of a box inside the array; None: all of them."""
        box = box or tuple(slice(0, size) for size in self.shape)
        values = np.empty([part.stop - part.start for part in box], self.dtype)
        if values.size:
            for number, extent in _chunks(self.shape, self.chunk, box):
                common = tuple(
                    slice(max(one.start, other.start), min(one.stop, other.stop))
                    for one, other in zip(extent, box, strict=True)
                )
                values[_seen_from(box, common)] = self._unpacked(file, number, extent)[_seen_from(extent, common)]
        return values

    def _unpacked(self, file: BinaryIO, number: int, extent: Box) -> Shaped[np.ndarray, ANY]:
        values = np.empty([part.stop - part.start for part in extent], self.dtype)
        file.seek(int(self.offsets[number]))
        blosc2.decompress2(file.read(self.sizes[number]), dst=values, nthreads=1)
        return values


@dataclass(frozen=True, eq=False)
class StoredCase:
    """A prepared case in a file, of which nothing but the header is held.

    Attributes:
        id: Unique in its dataset.
        annotated: Per channel, whether somebody looked for it.
        path: The file. It is opened for each reading, so that any number of cases in any number of processes will do.
        sections: Its arrays, by name.
        scales: Mean and standard deviation of each image channel, as :class:`CompactChannel` has them.
        lowest: The smallest value of each channel, normalised.
        counts: How many voxels to centre on are kept, by class and :data:`DECIDED`.
        geometry, file_geometry: As :class:`CompactCase` has them.
    """

    id: str
    annotated: Bool[np.ndarray, " classes"]
    path: Path
    sections: Mapping[str, Section]
    scales: tuple[tuple[float, float], ...]
    lowest: tuple[float, ...]
    counts: tuple[tuple[int, int], ...]
    geometry: Geometry
    file_geometry: Geometry

    @property
    def expanded_bytes(self) -> int:
        """Of memory that its :class:`~medseg.core.case.PreparedCase` takes."""
        voxel_bytes = len(self.scales) * np.dtype(np.float32).itemsize + np.dtype(np.int16).itemsize
        return self.geometry.num_voxels * voxel_bytes

    @property
    def foreground(self) -> ForegroundVoxels:
        """Read anew each time: in memory, those of many cases with many structures would be more than their images."""
        voxels: dict[int, np.ndarray] = {}
        coordinates, start = self._read(["foreground"])[0], 0
        for number, count in self.counts:
            voxels[number] = coordinates[:, start : start + count].T
            start += count
        decided = voxels.pop(DECIDED, None)
        return ForegroundVoxels(voxels, decided)

    def read_inside(
        self, place: PatchLocation
    ) -> tuple[Float[np.ndarray, "channels i j k"], Integer[np.ndarray, "i j k"]]:
        """Normalised intensities and class numbers of a box that lies inside the case."""
        *channels, classes = self._read([*self._channel_names, "classes"], place.to_slices())
        image = [normalised(values, mean, std) for values, (mean, std) in zip(channels, self.scales, strict=True)]
        return np.stack(image), classes.astype(np.int16)

    def compact(self) -> CompactCase:
        """All of it, in memory."""
        *values, classes = self._read([*self._channel_names, "classes"])
        channels = tuple(
            CompactChannel(array, mean, std) for array, (mean, std) in zip(values, self.scales, strict=True)
        )
        return CompactCase(self.id, channels, classes, self.annotated, self.geometry, self.file_geometry)

    @property
    def shape_ijk(self) -> Shape3:
        """Of the network's grid."""
        return self.geometry.shape_ijk

    @property
    def _channel_names(self) -> list[str]:
        return [_channel_name(number) for number in range(len(self.scales))]

    def _read(self, names: Sequence[str], box: Box | None = None) -> list[Shaped[np.ndarray, ANY]]:
        try:
            with self.path.open("rb") as file:
                return [self.sections[name].read(file, box) for name in names]
        except (OSError, RuntimeError, ValueError) as error:
            raise ResourceError(
                f"the prepared case {self.id} cannot be read from {self.path.parent} any more ({error}): leave the cache "
                "alone while a run is at work, and go on with --resume",
                code="resource.cache",
            ) from error


def packed_container(case: CompactCase) -> list[bytes]:
    """The bytes of a case's file, in parts."""
    foreground = ForegroundVoxels.of(case)
    voxels = dict(sorted(foreground.by_class.items()))
    if foreground.decided is not None:
        voxels[DECIDED] = foreground.decided
    coordinates = np.concatenate([np.empty((0, 3), np.int16), *voxels.values()]).T
    arrays = {_channel_name(number): channel.values for number, channel in enumerate(case.channels)}
    arrays |= {"classes": case.classes, "foreground": coordinates}
    edges = {name: CHUNK_IJK if array.ndim == 3 else (3, max(1, array.shape[1])) for name, array in arrays.items()}
    chunks = {
        name: [_packed(array[box]) for _, box in _chunks(array.shape, edges[name])] for name, array in arrays.items()
    }
    body = [chunk for section in chunks.values() for chunk in section]
    header = json.dumps(
        {
            "sections": [
                [name, array.dtype.str, array.shape, edges[name], [len(chunk) for chunk in chunks[name]]]
                for name, array in arrays.items()
            ],
            "scales": [[channel.mean, channel.std] for channel in case.channels],
            "lowest": [float(normalised(c.values.min()[None], c.mean, c.std)[0]) for c in case.channels],
            "counts": [[number, len(indices)] for number, indices in voxels.items()],
            "grids": [[grid.affine_ras.tolist(), grid.shape_ijk] for grid in (case.geometry, case.file_geometry)],
            "checksum": _checksum(body),
        }
    ).encode()
    return [START.pack(SIGNATURE, len(header), zlib.crc32(header)), header, *body]


def open_container(path: Path, case: str, annotated: Bool[np.ndarray, " classes"]) -> StoredCase | None:
    """Open a case, comparing every byte of its file with the checksums.

    Args:
        path: The file.
        case: The case's id.
        annotated: Per channel, whether somebody looked for it.

    Returns:
        None where the file is damaged, of another version, or missing.
    """
    try:
        with path.open("rb") as file:
            signature, header_bytes, checksum = START.unpack(file.read(START.size))
            header = file.read(header_bytes)
            if signature != SIGNATURE or zlib.crc32(header) != checksum:
                return None
            values = json.loads(header)
            if _checksum(iter(lambda: file.read(READ_BYTES), b"")) != values["checksum"]:
                return None
    except (OSError, struct.error):
        return None
    geometry, file_geometry = (Geometry(np.array(affine), tuple(shape)) for affine, shape in values["grids"])
    return StoredCase(
        id=case,
        annotated=annotated,
        path=path,
        sections=_sections(values["sections"], START.size + len(header)),
        scales=tuple((mean, std) for mean, std in values["scales"]),
        lowest=tuple(values["lowest"]),
        counts=tuple((number, count) for number, count in values["counts"]),
        geometry=geometry,
        file_geometry=file_geometry,
    )


def _channel_name(number: int) -> str:
    return f"channel_{number}"


def _sections(listed: Sequence[Any], start: int) -> dict[str, Section]:
    sections = {}
    for name, dtype, shape, chunk, sizes in listed:
        sections[name] = Section(dtype, tuple(shape), tuple(chunk), start, tuple(sizes))
        start += sum(sizes)
    return sections


def _chunks(shape: Sequence[int], chunk: Sequence[int], box: Box | None = None) -> Iterator[tuple[int, Box]]:
    """Number and extent of each chunk of an array, or of those that a box touches, in C order."""
    box = box or tuple(slice(0, size) for size in shape)
    counts = [-(-size // edge) for size, edge in zip(shape, chunk, strict=True)]
    touched = [range(part.start // edge, -(-part.stop // edge)) for part, edge in zip(box, chunk, strict=True)]
    for place in product(*touched):
        extent = tuple(
            slice(index * edge, min((index + 1) * edge, size))
            for index, edge, size in zip(place, chunk, shape, strict=True)
        )
        yield int(np.ravel_multi_index(place, counts)), extent


def _seen_from(origin: Box, box: Box) -> Box:
    """A box of an array in a part of it, which begins elsewhere."""
    return tuple(
        slice(part.start - begin.start, part.stop - begin.start) for begin, part in zip(origin, box, strict=True)
    )


def _packed(array: Shaped[np.ndarray, ANY]) -> bytes:
    packed: bytes = blosc2.compress2(
        np.ascontiguousarray(array),
        codec=blosc2.Codec.ZSTD,
        clevel=1,  # level 5 saves 5 % of a CT for four times the time
        filters=[blosc2.Filter.SHUFFLE],
        filters_meta=[0],
        typesize=array.dtype.itemsize,
        nthreads=1,  # the loader's processes are forked, which the threads of a library don't survive
    )
    return packed


def _checksum(parts: Iterable[bytes]) -> int:
    checksum = 0
    for part in parts:
        checksum = zlib.crc32(part, checksum)
    return checksum
