"""One DICOM file, opened as if somebody had damaged it.

pydicom reads on where a file ends or makes no sense, believes whatever length a header claims, unpacks what is deflated
however much that is, and prints what it meets. Here the file bounds every read, and whatever goes wrong is one clear
error that names the file, never a value of its header.
"""

from __future__ import annotations

import io
import logging
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg.core.errors import CaseError, ReadError

IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
DEFLATED, BIG_ENDIAN = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"
NATIVE = frozenset({IMPLICIT, EXPLICIT, DEFLATED, BIG_ENDIAN})
"""Transfer syntaxes that store voxels as they are. DICOM PS3.5 annex A."""

LOSSY = frozenset(f"1.2.840.10008.1.2.4.{last}" for last in ("50", "51", "81", "91", "93", "203"))
"""Transfer syntaxes that may lose something: JPEG (8 and 12 bit), JPEG-LS near-lossless, JPEG 2000 (two), HTJ2K."""

MEDIA_SOP_CLASS, MEDIA_SOP_INSTANCE, TRANSFER_SYNTAX = 0x00020002, 0x00020003, 0x00020010
"""Tags of the file's meta group. DICOM PS3.10 section 7.1."""

MAX_HEADER_BYTES = 32 * 2**20
"""How much of a deflated file is unpacked to find its header; that of 5000 enhanced frames has about 10 MB."""

MAX_NUM_READS = 1_000_000
"""Reads after which a header is nonsense: that of 5000 enhanced frames takes about 600 000, a classic one 300."""


@dataclass(frozen=True)
class DicomFile:
    """What a file says up to its voxels, and where these are.

    Attributes:
        dataset: The attributes that were asked for, as pydicom has them: values are converted when they are looked up.
        sop_class_uid: What kind of object it is; empty where it does not say.
        sop_instance_uid: Which one; empty where it does not say.
        syntax: Transfer syntax UID.
        is_little_endian: Byte order.
        start: Where the value of Pixel Data starts, in the unpacked file [bytes]; 0 where there is none.
        num_bytes: Length of that value; None where it is compressed, in fragments.
        num_available: What the file really holds from there on [bytes].
        media_sop_class_uid: What kind of object the file's meta group says it is; empty where there is none.
    """

    dataset: Any
    sop_class_uid: str
    sop_instance_uid: str
    syntax: str
    is_little_endian: bool
    start: int
    num_bytes: int | None
    num_available: int
    media_sop_class_uid: str


def is_dicom_file(path: Path) -> bool:
    """Whether a file is DICOM: by its prefix, or, without one, by what its first attributes say. Never raises."""
    try:
        with path.open("rb") as file:
            head = file.read(132)
        if head[128:] == b"DICM":
            return True
        # Files without a prefix start with group 2 or 8, in either byte order.
        if head[:2] not in (b"\x08\x00", b"\x02\x00", b"\x00\x08", b"\x00\x02"):
            return False
        return bool(open_dicom(path, ("SOPClassUID",)).sop_class_uid)
    except (OSError, CaseError):
        return False


def open_dicom(path: Path, keywords: Sequence[str]) -> DicomFile:
    """Read a file's header.

    Args:
        path: The file.
        keywords: Names of the attributes to keep.

    Raises:
        ReadError: It is missing, or its header cannot be parsed.
    """
    try:
        with quiet(), path.open("rb") as file:
            return _opened(file, path, keywords)
    except CaseError:
        raise
    except FileNotFoundError:
        raise ReadError(f"there is no file {path.name}: check the name", code="read.missing") from None
    except Exception as error:  # a damaged header makes pydicom raise anything, RecursionError and OSError included
        if isinstance(error, OSError) and error.strerror:
            raise ReadError(f"cannot read {path.name}: {error.strerror}", code="read.failed") from error
        raise damaged(path, f"its header cannot be read ({type(error).__name__})") from error


def damaged(path: Path, what: str) -> ReadError:
    """One file of a series cannot be believed; without it, a slice would be missing."""
    return ReadError(f"{path.name} is damaged: {what}; copy it again from the archive", code="dicom.damaged")


def truncated(path: Path, expected: int, found: int) -> ReadError:
    """A file ends before its voxels do."""
    return ReadError(
        f"{path.name} is truncated: expected {expected} bytes of voxels, found {found}; copy it again",
        code="dicom.truncated",
    )


@contextmanager
def quiet() -> Iterator[None]:
    """pydicom tells what it meets as warnings and log lines; what matters is told as errors and notes instead."""
    logger = logging.getLogger("pydicom")
    was_disabled, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = was_disabled


def inflate(path: Path, max_bytes: int) -> bytes:
    """The first unpacked bytes of the dataset of a deflated file."""
    with path.open("rb") as file:
        _meta(_BoundedFile(file))
        try:
            return zlib.decompressobj(-zlib.MAX_WBITS).decompress(file.read(), max_bytes)
        except zlib.error as error:
            raise damaged(path, "its deflated part cannot be unpacked") from error


def _opened(file: io.BufferedIOBase, path: Path, keywords: Sequence[str]) -> DicomFile:
    import pydicom

    source = _BoundedFile(file)
    meta = _meta(source)
    syntax = meta.get(TRANSFER_SYNTAX, "")
    if syntax == DEFLATED:  # pydicom would unpack all of it, however much that is
        source = _BoundedFile(io.BytesIO(inflate(path, MAX_HEADER_BYTES)))
        tags = [pydicom.tag.Tag(keyword) for keyword in keywords]
        dataset = pydicom.filereader.read_dataset(source, False, True, stop_when=_is_pixel_data, specific_tags=tags)
        is_little_endian = True
    else:
        source.seek(0)
        dataset = pydicom.dcmread(source, stop_before_pixels=True, force=True, specific_tags=list(keywords))
        is_little_endian = bool(dataset.original_encoding[1])
        syntax = syntax or (EXPLICIT if is_little_endian else BIG_ENDIAN)
    start, num_bytes = _pixel_element(source, is_little_endian)
    return DicomFile(
        dataset,
        str(dataset.get("SOPClassUID") or meta.get(MEDIA_SOP_CLASS, "")),
        str(dataset.get("SOPInstanceUID") or meta.get(MEDIA_SOP_INSTANCE, "")),
        syntax,
        is_little_endian,
        start,
        num_bytes,
        source.num_bytes - start,
        meta.get(MEDIA_SOP_CLASS, ""),
    )


def _is_pixel_data(tag: int, *_: Any) -> bool:
    return tag in (0x7FE00008, 0x7FE00009, 0x7FE00010)  # doubles, floats, integers


def _meta(source: _BoundedFile) -> dict[int, str]:
    """Texts of the file's meta group by tag, empty where it has none; stops behind that group."""
    from pydicom.filereader import data_element_generator

    if source.read(132)[128:] != b"DICM":
        source.seek(0)
    elements = data_element_generator(source, False, True, stop_when=lambda tag, *_: tag >> 16 != 2)
    values = {int(element.tag): bytes(element.value or b"") for element in elements}
    return {tag: value.rstrip(b"\0 ").decode("ascii", errors="replace") for tag, value in values.items()}


def _pixel_element(source: _BoundedFile, is_little_endian: bool) -> tuple[int, int | None]:
    """Where the value of Pixel Data starts, 0 without one, and its length, None where it is in fragments."""
    head = source.read(12)
    if len(head) < 8 or head[:4] != (b"\xe0\x7f\x10\x00" if is_little_endian else b"\x7f\xe0\x00\x10"):
        return 0, None
    # An implicit length that looked like a VR would be odd, and lengths are even.
    is_explicit = head[4:6] in (b"OB", b"OW", b"UN")
    length = int.from_bytes(head[8:12] if is_explicit else head[4:8], "little" if is_little_endian else "big")
    start = source.tell() - len(head) + (12 if is_explicit else 8)
    return start, None if length == 0xFFFFFFFF else length


class _BoundedFile:
    """A file that never gives more than it holds, whatever length is asked for, and not for ever."""

    def __init__(self, file: io.BufferedIOBase) -> None:
        self._file = file
        self.num_bytes = file.seek(0, io.SEEK_END)
        self._num_reads = 0
        self.tell = file.tell
        file.seek(0)

    def read(self, num_bytes: int = -1) -> bytes:
        self._num_reads += 1
        if self._num_reads > MAX_NUM_READS:
            raise ValueError("an endless header")
        left = max(0, self.num_bytes - self._file.tell())
        return self._file.read(left if num_bytes < 0 else min(num_bytes, left))

    def seek(self, place: int, whence: int = io.SEEK_SET) -> int:
        # A length that leads beyond the end leads to the end.
        return self._file.seek(min(place, self.num_bytes) if whence == io.SEEK_SET else place, whence)
