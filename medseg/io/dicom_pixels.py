"""From the stored bits of a DICOM slice to numbers that mean something: HU, activity, or what the modality measures.

Only the bits that the header means are believed; slope and intercept are each slice's own; what the header marks as
padding becomes air in CT. Compressed voxels are unpacked by pydicom's decoders, after their own header was compared with
the file's: a decoder believes what it is given, and some crash on what does not fit.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Bool, Num, Shaped

from medseg.core.errors import ReadError
from medseg.io.dicom_codec import NO_DECODER, CodecError, unpack
from medseg.io.dicom_file import DEFLATED, NATIVE, damaged, inflate, quiet, truncated
from medseg.io.dicom_header import PixelLayout, SliceHeader

AIR_HU = -1024
"""What voxels become where nothing was measured: the lowest HU of a 12-bit scanner."""

MAX_FILE_TAIL_BYTES = 2**20
"""What may follow the voxels in a deflated file."""

RLE = "1.2.840.10008.1.2.5"

COMPRESSED = {
    RLE: "RLE",
    "1.2.840.10008.1.2.4.50": "JPEG baseline",
    "1.2.840.10008.1.2.4.51": "JPEG extended",
    "1.2.840.10008.1.2.4.57": "JPEG lossless",
    "1.2.840.10008.1.2.4.70": "JPEG lossless SV1",
    "1.2.840.10008.1.2.4.80": "JPEG-LS lossless",
    "1.2.840.10008.1.2.4.81": "JPEG-LS near-lossless",
    "1.2.840.10008.1.2.4.90": "JPEG 2000 lossless",
    "1.2.840.10008.1.2.4.91": "JPEG 2000",
    "1.2.840.10008.1.2.4.201": "HTJ2K lossless",
    "1.2.840.10008.1.2.4.202": "HTJ2K lossless RPCL",
    "1.2.840.10008.1.2.4.203": "HTJ2K",
}
"""Compressed transfer syntaxes that are read, where a decoder is installed. DICOM PS3.5 annex A.4."""

MAX_RLE_RATIO = 64
"""Two bytes become 128 at most. DICOM PS3.5 annex G.3."""

JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
JPEG_2000_START = b"\xff\x4f\xff\x51"
JPEG_FRAME_MARKERS = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})
"""Markers that announce the size of an image. ITU-T T.81 table B.1; 0xF7 is JPEG-LS, ITU-T T.87."""

MAX_TILES = 4096
"""A JPEG 2000 image of more parts than this is damaged: scanners write one."""

PIXEL_AXES = "rows columns"


class SliceReader:
    """Reads slices as numbers, and remembers what it met.

    Attributes:
        keeps_integers: Give int32 where True, else float32.
        num_padding_voxels: Voxels so far that were marked as padding and became air.
        has_unused_bits: Whether bits that the header does not mean held something.
    """

    def __init__(self, *, keeps_integers: bool) -> None:
        self.keeps_integers = keeps_integers
        self.num_padding_voxels = 0
        self.has_unused_bits = False
        self._unpacked_path: Path | None = None
        self._unpacked: list[bytes] = []

    def read(self, header: SliceHeader) -> Num[np.ndarray, PIXEL_AXES]:
        """Rows × columns of one slice, rescaled.

        Raises:
            ReadError: Truncated, damaged, or no decoder for its compression is installed.
        """
        layout = header.layout
        try:
            raw = self._stored_bits(header)
        except OSError as error:
            raise ReadError(f"cannot read {layout.path.name}: {error.strerror or error}", code="read.failed") from error
        values, has_unused_bits = meant_values(raw, layout)
        self.has_unused_bits |= has_unused_bits
        slope, intercept = header.slope or 1.0, header.intercept or 0.0
        numbers: Num[np.ndarray, PIXEL_AXES]
        if self.keeps_integers:
            numbers = values.astype(np.int32) * int(slope) + int(intercept)
        else:
            numbers = (values.astype(np.float64) * slope + intercept).astype(np.float32)
        if header.modality == "CT" and layout.padding is not None:
            padding = _padding(values, raw, layout)
            self.num_padding_voxels += int(np.count_nonzero(padding))
            numbers[padding] = AIR_HU
        return numbers

    def _stored_bits(self, header: SliceHeader) -> Shaped[np.ndarray, PIXEL_AXES]:
        layout = header.layout
        if layout.syntax in NATIVE:
            raw = np.frombuffer(self._native_frame(layout, header.frame), f"u{layout.bits_allocated // 8}")
            if not layout.is_little_endian:
                raw = raw.byteswap()
            return raw.reshape(layout.shape_ji)
        if self._unpacked_path != layout.path:
            self._unpacked, self._unpacked_path = _compressed_frames(layout), layout.path
        return _decompressed(self._unpacked[header.frame], layout)

    def _native_frame(self, layout: PixelLayout, frame: int) -> bytes:
        start = layout.start + frame * layout.frame_bytes
        if layout.syntax == DEFLATED:
            if self._unpacked_path != layout.path:
                self._unpacked, self._unpacked_path = [_inflated(layout)], layout.path
            content = self._unpacked[0][start : start + layout.frame_bytes]
        else:
            with layout.path.open("rb") as file:
                file.seek(start)
                content = file.read(layout.frame_bytes)
        if len(content) < layout.frame_bytes:
            raise truncated(layout.path, layout.frame_bytes, len(content))
        return content


def _inflated(layout: PixelLayout) -> bytes:
    end = layout.start + layout.frame_bytes * layout.num_frames
    content = inflate(layout.path, end + MAX_FILE_TAIL_BYTES + 1)
    if len(content) > end + MAX_FILE_TAIL_BYTES:
        raise damaged(layout.path, "it unpacks to more than its header says")
    return content


def meant_values(
    raw: Shaped[np.ndarray, PIXEL_AXES], layout: PixelLayout
) -> tuple[Shaped[np.ndarray, PIXEL_AXES], bool]:
    """The numbers in the bits that are meant, and whether the other bits held anything else than a sign.

    Old files keep overlays or leftovers in the other bits. DICOM PS3.5 section 8.1.1.
    """
    unsigned = np.dtype(f"u{raw.dtype.itemsize}")
    num_bits = min(layout.bits_stored, 8 * unsigned.itemsize)
    signed = np.dtype(f"i{unsigned.itemsize}")
    if num_bits == 8 * unsigned.itemsize:
        return raw.view(signed) if layout.is_signed else raw, False
    mask = unsigned.type(2**num_bits - 1)
    shift = unsigned.type(layout.high_bit + 1 - layout.bits_stored)
    shifted = raw >> shift
    kept = shifted & mask
    top = unsigned.type(2 ** (num_bits - 1))
    extended = np.where(kept & top, kept | ~mask, kept).astype(unsigned, copy=False)
    others = raw != kept << shift
    if layout.is_signed:
        others &= shifted != extended
    return extended.view(signed) if layout.is_signed else kept, bool(others.any())


def _padding(
    values: Shaped[np.ndarray, PIXEL_AXES], raw: Shaped[np.ndarray, PIXEL_AXES], layout: PixelLayout
) -> Bool[np.ndarray, PIXEL_AXES]:
    """Which voxels lie in the padding's range, ends included.

    Its attributes may be written as unsigned where the voxels are signed, and the reverse. A padding that does not
    fit the bits that are meant (−2000 in 12 bits) is looked for in all bits.
    """
    assert layout.padding is not None
    bits = np.array([layout.padding]) & (2 ** (8 * raw.dtype.itemsize) - 1)
    ends, does_not_fit = meant_values(bits.astype(raw.dtype), layout)
    if does_not_fit:
        values = raw.view(f"i{raw.dtype.itemsize}") if layout.is_signed else raw
        ends = bits.astype(raw.dtype).view(values.dtype)
    inside: Bool[np.ndarray, PIXEL_AXES] = (values >= ends.min()) & (values <= ends.max())
    return inside


def _compressed_frames(layout: PixelLayout) -> list[bytes]:
    """The compressed images of one file, each checked to be whole and of the size that the header says."""
    from pydicom.encaps import generate_frames

    if layout.syntax not in COMPRESSED:
        raise ReadError(
            f"{layout.path.name} stores its voxels in a way that is not supported ({layout.syntax}): "
            "convert it, for example with gdcmconv --raw",
            code="dicom.transfer_syntax",
        )
    with layout.path.open("rb") as file:
        file.seek(layout.start)
        content = file.read()
    _check_fragments(content, layout)
    try:
        with quiet():
            frames = list(generate_frames(content, number_of_frames=layout.num_frames))
    except Exception as error:  # pydicom raises whatever it meets in damaged fragments
        raise damaged(layout.path, f"its compressed voxels make no sense ({type(error).__name__})") from error
    if len(frames) != layout.num_frames:
        raise damaged(layout.path, f"it announces {layout.num_frames} images and holds {len(frames)}")
    for frame in frames:
        _check_compressed(frame, layout)
    return frames


def _check_fragments(content: bytes, layout: PixelLayout) -> None:
    """Fragments follow each other to the delimiter: what is cut off would be decoded to grey."""
    place = 0
    while content[place : place + 4] == b"\xfe\xff\x00\xe0":
        place += 8 + int.from_bytes(content[place + 4 : place + 8], "little")
    if content[place : place + 4] != b"\xfe\xff\xdd\xe0":
        raise truncated(layout.path, place, len(content))


def _check_compressed(frame: bytes, layout: PixelLayout) -> None:
    if layout.syntax == RLE:
        if layout.frame_bytes > MAX_RLE_RATIO * len(frame):
            raise truncated(layout.path, layout.frame_bytes // MAX_RLE_RATIO, len(frame))
        return
    if not frame[-16:].rstrip(b"\0").endswith(JPEG_END):
        raise damaged(layout.path, "the end of its compressed voxels is missing")
    found = _jpeg_2000_size(frame) if JPEG_2000_START in frame[:256] else _jpeg_size(frame)
    rows, columns = layout.shape_ji
    if found is None or found[:3] != (rows, columns, 1):
        told = "none" if found is None else f"{found[0]} × {found[1]} voxels of {found[2]} numbers"
        raise damaged(layout.path, f"expected a compressed image of {rows} × {columns} voxels, found {told}")
    if not (found[3] <= layout.bits_allocated and (found[3] >= layout.bits_stored or not layout.is_signed)):
        raise damaged(
            layout.path, f"expected {layout.bits_stored} bits a voxel, found {found[3]} in its compressed part"
        )


def _jpeg_size(frame: bytes) -> tuple[int, int, int, int] | None:
    """Rows, columns, components and bits by the first frame header; None without one. ITU-T T.81 section B.2.2."""
    if not frame.startswith(JPEG_START):
        return None
    place = 2
    while place + 10 <= len(frame) and frame[place] == 0xFF:
        marker, length = frame[place + 1], int.from_bytes(frame[place + 2 : place + 4], "big")
        if marker in JPEG_FRAME_MARKERS:
            rows, columns = (int.from_bytes(frame[at : at + 2], "big") for at in (place + 5, place + 7))
            return rows, columns, frame[place + 9], frame[place + 4]
        place += 1 if marker == 0xFF else 2 + length
    return None


def _jpeg_2000_size(frame: bytes) -> tuple[int, int, int, int] | None:
    """Rows, columns, components and bits by the SIZ segment. ITU-T T.800 section A.5.1."""
    segment = frame[frame.index(JPEG_2000_START) + 4 :][:43]
    if len(segment) < 39:
        return None
    x, y, x_start, y_start, x_tile, y_tile, *_ = (int.from_bytes(segment[at : at + 4], "big") for at in range(4, 36, 4))
    rows, columns = y - y_start, x - x_start
    if min(x_tile, y_tile) < 1 or -(-x // x_tile) * -(-y // y_tile) > MAX_TILES:
        return None
    return rows, columns, int.from_bytes(segment[36:38], "big"), (segment[38] & 0x7F) + 1


def _decompressed(frame: bytes, layout: PixelLayout) -> Shaped[np.ndarray, PIXEL_AXES]:
    """The stored bits of one compressed image."""
    description = {
        "transfer_syntax_uid": layout.syntax,
        "rows": layout.shape_ji[0],
        "columns": layout.shape_ji[1],
        "bits_allocated": layout.bits_allocated,
        "bits_stored": layout.bits_stored,
        "pixel_representation": int(layout.is_signed),
    }
    try:
        content = unpack(frame, description, layout.frame_bytes)
    except CodecError as error:
        if str(error) == NO_DECODER:
            raise ReadError(
                f"{layout.path.name} is compressed ({COMPRESSED[layout.syntax]}) and no decoder for that is "
                "installed: pip install 'medseg[dicom-codecs]'",
                code="dicom.codec",
            ) from error
        raise damaged(layout.path, "its compressed voxels cannot be unpacked") from error
    return np.frombuffer(content, f"u{layout.bits_allocated // 8}").reshape(layout.shape_ji)
