"""Files that somebody damaged: one clear error or a volume, and never a crash, a hang or a gigabyte."""

from __future__ import annotations

import time
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from medseg.core.errors import CaseError
from medseg.io.dicom_series import read_dicom_series

NUM_MUTATIONS, NUM_MUTATIONS_IN_ALL = 300, 1000
MAX_SECONDS = 2.0
SYNTAXES = [
    ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, RLELossless,
    JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless,
]  # fmt: skip
SEQUENCE = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
"""An item of a sequence, both without end."""


def mutated(whole: bytes, rng: np.random.Generator) -> bytes:
    """One damage of nine kinds, to the header, the voxels or anywhere."""
    content = bytearray(whole)
    header_end = max(whole.find(b"\xe0\x7f\x10\x00"), whole.find(b"\x7f\xe0\x00\x10"), 400)
    place, anywhere, count = (int(number) for number in rng.integers([128, 0, 1], [header_end, len(whole), 64]))
    noise, few = rng.integers(0, 256, 64, dtype=np.uint8).tobytes(), count // 8 + 1
    voxel = max(anywhere, header_end)
    start, end, new = [
        (place, place + few, noise[:few]),  # bytes of the header
        (anywhere, anywhere + 1, bytes([whole[anywhere] ^ (1 << count % 8)])),  # a bit anywhere
        (anywhere, len(whole), b""),  # cut off
        (place, place + 4, b"\xff\xff\xff\xff"),  # a length without end
        (place, place + 2, noise[:2]),  # a huge or tiny number
        (place, place, noise[:count]),  # something between
        (place, place + count, b""),  # something missing
        (place, place, SEQUENCE * 40 * count),  # sequences in sequences
        (voxel, voxel + few, noise[:few]),  # bytes of the voxels
    ][int(rng.integers(9))]
    content[start:end] = new
    return bytes(content)


@pytest.mark.parametrize("num_mutations", [NUM_MUTATIONS, pytest.param(NUM_MUTATIONS_IN_ALL, marks=pytest.mark.slow)])
def test_no_damage_leads_to_anything_but_one_clear_error(
    tmp_path: Path, write_series: Any, capfd: pytest.CaptureFixture[str], num_mutations: int
) -> None:
    rng = np.random.default_rng(num_mutations)
    body = rng.normal(1000, 30, (20, 16, 3)).astype(np.uint16)
    affine = np.diag([-2.0, -1.5, 2.5, 1.0])
    series = [write_series(tmp_path / str(number), body, affine, syntax=s) for number, s in enumerate(SYNTAXES)]
    outcomes: Counter[str] = Counter()
    for paths in series:  # imports and the decoding process count for none of the files
        assert read_dicom_series(paths[0].parent).notes == ()
    tracemalloc.start()
    try:
        for _ in range(num_mutations):
            paths = series[int(rng.integers(len(series)))]
            path = paths[int(rng.integers(len(paths)))]
            whole = path.read_bytes()
            path.write_bytes(mutated(whole, rng))
            outcomes[outcome(path)] += 1
            path.write_bytes(whole)
    finally:
        tracemalloc.stop()
    assert {"dicom.damaged", "dicom.truncated", "read"} <= set(outcomes)
    assert capfd.readouterr() == ("", "")
    for paths in series:
        np.testing.assert_array_equal(read_dicom_series(paths[0].parent).array[0] + 1024, body)


def outcome(path: Path) -> str:
    folder = path.parent
    num_bytes = sum(file.stat().st_size for file in folder.iterdir())
    tracemalloc.reset_peak()
    before_bytes, started = tracemalloc.get_traced_memory()[0], time.perf_counter()
    try:
        code = "read" if read_dicom_series(folder).array.size else ""
    except CaseError as error:
        code = error.code
        assert error.code.startswith(("dicom.", "geometry."))
        assert "Doe" not in error.message and str(folder) not in error.message
    assert time.perf_counter() - started < MAX_SECONDS
    assert tracemalloc.get_traced_memory()[1] - before_bytes <= 1.5 * num_bytes + 50e6
    return code
