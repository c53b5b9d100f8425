"""From a file's bytes to its voxels, unpacked to the very end and within limits.

Readers of this field stop before the trailer of a compressed stream and so return altered voxels without a word. Here
a stream is unpacked to its end, so that its check sum is compared, before a voxel of it is believed. And what a header
promises is only believed as far as the bytes really come: memory grows with them.
"""

from __future__ import annotations

import io
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Num, Shaped

from medseg.core.errors import ReadError

Packing = Literal["gzip", "zlib"]

WINDOW_BITS = {"gzip": 31, "zlib": 15}
"""What tells zlib which wrapper to expect, and so which check sum to compare: RFC 1952 or RFC 1950. zlib's manual."""

MAX_VOXELS = 2**31
"""More voxels than any scanner makes (2048 × 1024 × 1024): a header that asks for more is damaged."""

MAX_BYTES = 2**34
"""The largest number of voxels, as double precision: 16 GiB."""

MAX_RATIO = 1100
"""Deflate packs no tighter than 1032 to 1 (zlib's technical notes): a header that promises more lies."""

MAX_TIGHT_VOXELS, MAX_TIGHT_BYTES, MAX_TIGHT_RATIO = 2**29, 2**31, 100
"""What unpacks to more than either (2048 slices of 512 × 512; half of them in double precision) out of less than a
hundredth is neither a scan nor a label map but a bomb. Label maps do pack a hundredfold, but are no larger."""

MAX_PADDING_BYTES = 4096
"""What may follow the voxels, zeros only: some writers fill up a block. Anything else is data of another shape."""

MAX_MEMBERS, MIN_MEMBER_BYTES = 1000, 1024
"""A gzip file may have so many members, and one more for each so many bytes unpacked: empty ones only cost time."""

PACKED_BLOCK_BYTES, BLOCK_BYTES = 2**16, 2**19
"""Read and unpacked at a time."""

FIRST_VOXELS, GROWTH = 2**22, 1.25
"""Voxels to allocate before any is seen, and the factor of growth as they come."""


@dataclass(frozen=True)
class Layout:
    """What a header promises of the voxels.

    Attributes:
        shape: Number of values along each axis of the file, the fastest first.
        stored: Type as stored, with its byte order.
        scaling: Slope and intercept from stored to true values; None where the stored numbers are the values.
    """

    shape: tuple[int, ...]
    stored: np.dtype[np.generic]
    scaling: tuple[float, float] | None = None

    @property
    def num_voxels(self) -> int:
        """Number of values in all."""
        count = 1
        for size in self.shape:  # Python's integers do not overflow
            count *= size
        return count

    @property
    def num_bytes(self) -> int:
        """Size of the stored values [bytes]."""
        return self.num_voxels * self.stored.itemsize

    @property
    def type(self) -> np.dtype[np.generic]:
        """Type of the values: as stored where those are integers and not scaled, else float32."""
        if self.scaling is None and self.stored.kind in "iu":
            return self.stored.newbyteorder("=")
        return np.dtype(np.float32)

    def values(self, stored: Shaped[np.ndarray, " values"]) -> Num[np.ndarray, " values"]:
        """True values of stored ones, scaled in double precision; what float32 cannot hold becomes infinite."""
        if self.scaling is None:
            return stored
        slope, intercept = self.scaling
        scaled: np.ndarray = stored * np.float64(slope) + np.float64(intercept)
        return scaled


class _Unpacked(io.RawIOBase):
    """The unpacked bytes of a compressed stream, from where the file stands to its end."""

    def __init__(self, file: io.BufferedReader, packing: Packing, name: str) -> None:
        self._blocks = _unpacked_blocks(file, packing, name)
        self._block = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        target = memoryview(buffer).cast("B")
        while not self._block:
            block = next(self._blocks, None)
            if block is None:
                return 0
            self._block = memoryview(block)
        count = min(len(target), len(self._block))
        target[:count] = self._block[:count]
        self._block = self._block[count:]
        return count


@contextmanager
def opened(path: Path) -> Iterator[io.BufferedReader]:
    """A regular, non-empty file, open for reading; what the operating system refuses becomes one clear error.

    Raises:
        ReadError: It is missing, empty, no regular file, or cannot be read.
    """
    try:
        if "\0" in str(path):
            raise ReadError(f"{path.name!r} cannot be the name of a file", code="read.failed")
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # reading a pipe or a device may never end
            raise ReadError(f"{path.name} is no file of voxels: give the file itself", code="read.failed")
        if status.st_size == 0:
            raise ReadError(f"{path.name} is empty: copy it again", code="read.empty")
        with path.open("rb") as file:
            yield file
    except FileNotFoundError:
        raise ReadError(f"there is no file {path.name}: check the name", code="read.missing") from None
    except OSError as error:
        raise ReadError(f"cannot read {path.name}: {error.strerror or error}", code="read.failed") from error
    except MemoryError as error:
        raise ReadError(f"{path.name} does not fit into this machine's memory", code="read.memory") from error


def unpacked(file: io.BufferedReader, packing: Packing | None, path: Path) -> io.BufferedReader:
    """The stream from where the file stands, unpacked; all of gzip's members are one stream.

    Reading raises ReadError where the stream is cut (``read.truncated``) or damaged (``read.crc``).
    """
    if packing is None:
        return file
    return io.BufferedReader(_Unpacked(file, packing, path.name), BLOCK_BYTES)


def check_promise(num_promised: int, num_there: int, packing: Packing | None, layout: Layout, path: Path) -> None:
    """Refuse what a file cannot hold before anything is allocated for it.

    Args:
        num_promised: Size of the unpacked stream by the header [bytes].
        num_there: Size of the stream in the file [bytes].
        packing: How it is packed.
        layout: Of the voxels.
        path: For the message.

    Raises:
        ReadError: Absurd dimensions (``read.dimensions``), more than can be there (``read.length``), or less there
            than promised (``read.truncated``).
    """
    if layout.num_voxels > MAX_VOXELS or num_promised > MAX_BYTES:
        raise ReadError(f"{path.name} claims {layout.num_voxels} voxels: its header is damaged", code="read.dimensions")
    if packing is None:
        if num_promised > num_there:
            raise truncated(path, num_promised, num_there)
        return
    is_large = layout.num_voxels > MAX_TIGHT_VOXELS or num_promised > MAX_TIGHT_BYTES
    if num_promised > (MAX_TIGHT_RATIO if is_large else MAX_RATIO) * num_there:
        raise ReadError(
            f"{path.name} packs {num_there} bytes, its header promises {num_promised}: it is damaged; copy it "
            "again, or store it unpacked if it is whole",
            code="read.length",
        )


def read_voxels(stream: io.BufferedReader, layout: Layout, path: Path) -> Num[np.ndarray, "*axes"]:
    """The values that follow in a stream, which must end there; its check sums are compared.

    Memory holds the result and one block, and grows with the bytes that really come.

    Returns:
        An array in the axes of the layout, the first one fastest; :attr:`Layout.type`, native byte order.

    Raises:
        ReadError: The stream is cut, damaged, or goes on after the voxels.
    """
    num_voxels, itemsize = layout.num_voxels, layout.stored.itemsize
    array = np.empty(min(num_voxels, FIRST_VOXELS), layout.type)
    num_filled = 0
    while num_filled < num_voxels:
        block = stream.read(min(num_voxels - num_filled, BLOCK_BYTES // itemsize) * itemsize)
        count = len(block) // itemsize
        if not count or len(block) % itemsize:
            raise truncated(path, layout.num_bytes, num_filled * itemsize + len(block))
        stop = num_filled + count
        if stop > len(array):
            array.resize(min(num_voxels, max(stop, int(GROWTH * len(array)))), refcheck=False)
        with np.errstate(over="ignore", invalid="ignore"):
            array[num_filled:stop] = layout.values(np.frombuffer(block, layout.stored))
        num_filled = stop
    rest = stream.read(MAX_PADDING_BYTES + 1)  # reading to the end is what compares the check sums
    if len(rest) > MAX_PADDING_BYTES or any(rest):
        raise ReadError(
            f"{path.name} holds more than the {layout.num_bytes} bytes of voxels that its header tells of: "
            "it is damaged, copy it again",
            code="read.length",
        )
    return array.reshape(layout.shape, order="F")


def size_of(file: io.BufferedReader) -> int:
    """Size of an open file [bytes]."""
    return os.fstat(file.fileno()).st_size


def truncated(path: Path, expected: int, found: int) -> ReadError:
    """The error of a file that ends too early."""
    return ReadError(
        f"{path.name} is truncated: expected {expected} bytes, found {found}; copy it again", code="read.truncated"
    )


def _unpacked_blocks(file: io.BufferedReader, packing: Packing, name: str) -> Iterator[bytes]:
    """Blocks of limited size, so that a bomb unpacks no further than it is asked to."""
    num_members, num_bytes, packed = 0, 0, b""
    while packed := packed or file.read(PACKED_BLOCK_BYTES):
        if num_members and not (packed := packed.lstrip(b"\0")):  # tapes and some tools pad with zeros
            continue
        if num_members and packing == "zlib":
            raise _damaged(name, "something follows its compressed stream")
        num_members += 1
        if num_members > MAX_MEMBERS + num_bytes // MIN_MEMBER_BYTES:
            raise ReadError(f"{name} consists of thousands of empty pieces: copy it again", code="read.length")
        inflater = zlib.decompressobj(wbits=WINDOW_BITS[packing])
        while not inflater.eof:
            packed = packed or file.read(PACKED_BLOCK_BYTES)
            if not packed:
                raise ReadError(
                    f"{name} is truncated, the end of its compressed stream is missing: copy it again",
                    code="read.truncated",
                )
            try:
                block = inflater.decompress(packed, BLOCK_BYTES)
            except zlib.error as error:
                raise _damaged(name, str(error)) from error
            packed = inflater.unused_data if inflater.eof else inflater.unconsumed_tail
            num_bytes += len(block)
            yield block


def _damaged(name: str, reason: str) -> ReadError:
    return ReadError(f"{name} is damaged ({reason}): copy it again", code="read.crc")
