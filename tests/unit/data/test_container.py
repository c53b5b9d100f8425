"""A case in its file: any box of it is what it would be in memory, and damage never passes."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.core.case import CompactCase, CompactChannel
from medseg.core.errors import ResourceError
from medseg.core.geometry import Geometry
from medseg.core.labels import IGNORED
from medseg.core.patch import PatchLocation
from medseg.data.container import StoredCase, open_container, packed_container
from medseg.data.prepare import expanded
from medseg.data.sampling import ForegroundVoxels
from medseg.data.source import MemorySource, PatchSource, StoredSource

ANNOTATED = np.array([True, True, False])
SHAPE = (41, 70, 33)
"""Not a multiple of a chunk along any axis, and more than one."""


def compact(shape=SHAPE, some_ignored: bool = False) -> CompactCase:
    rng = np.random.default_rng(0)
    classes = np.zeros(shape, np.int8)
    classes[5:9, 3:40, 8:20] = 1
    classes[20:30, 50:60, 25:] = 2
    if some_ignored:
        classes[:, :, :3] = IGNORED
    hu = (rng.standard_normal(shape) * 300 - 200).astype(np.int16)
    suv = rng.gamma(1.0, 2.0, shape).astype(np.float16)
    grid = Geometry.from_spacing(shape, (1.5, 2.0, 3.0))
    channels = (CompactChannel(hu, -217.3, 311.9), CompactChannel(suv, 0.0, 1.0))
    return CompactCase("a", channels, classes, ANNOTATED, grid, Geometry.from_spacing((9, 9, 9), (1.0, 1.0, 1.0)))


def stored(folder: Path, case: CompactCase) -> StoredCase:
    path = folder / "a.case"
    path.write_bytes(b"".join(packed_container(case)))
    opened = open_container(path, case.id, case.annotated)
    assert opened is not None
    return opened


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[PatchSource, PatchSource]:
    case = compact()
    return MemorySource(expanded(case)), StoredSource(stored(tmp_path_factory.mktemp("stored"), case))


axis = st.tuples(st.integers(-50, 110), st.integers(1, 80))


@given(st.tuples(axis, axis, axis))
@settings(max_examples=80)
def test_any_box_is_the_same_bits_from_the_file_and_from_memory(sources, axes) -> None:
    place = PatchLocation(tuple(start for start, _ in axes), tuple(size for _, size in axes))
    for found, expected in zip(sources[1].read(place), sources[0].read(place), strict=True):
        assert found.dtype == expected.dtype
        assert found.tobytes() == expected.tobytes()


def test_what_is_read_is_the_callers_own(sources) -> None:
    whole = PatchLocation((0, 0, 0), SHAPE)
    for source in sources:
        image, classes = source.read(whole)
        image += 1
        classes += 1
        again, classes_again = source.read(whole)
        np.testing.assert_allclose(again, image - 1, atol=1e-5)
        np.testing.assert_array_equal(classes_again, classes - 1)


def test_a_source_travels_to_another_process(sources) -> None:
    there = pickle.loads(pickle.dumps(sources[1]))
    place = PatchLocation((3, 60, -4), (40, 20, 20))
    np.testing.assert_array_equal(there.read(place)[0], sources[0].read(place)[0])


@pytest.mark.parametrize("some_ignored", [False, True])
def test_the_voxels_to_centre_on_come_with_it(tmp_path: Path, some_ignored: bool) -> None:
    case = compact(some_ignored=some_ignored)
    found, expected = stored(tmp_path, case).foreground, ForegroundVoxels.of(case)
    assert list(found.by_class) == list(expected.by_class) == [1, 2]
    for number, voxels in expected.by_class.items():
        np.testing.assert_array_equal(found.by_class[number], voxels)
        assert (case.classes[tuple(voxels.T)] == number).all()
    assert (found.decided is None) == (expected.decided is None) == (not some_ignored)
    if some_ignored:
        np.testing.assert_array_equal(found.decided, expected.decided)


def test_at_most_so_many_voxels_a_class_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medseg.data.sampling.MAX_LOCATIONS", 100)
    counts = {number: len(voxels) for number, voxels in ForegroundVoxels.of(compact()).by_class.items()}
    assert all(50 <= count <= 100 for count in counts.values()), counts


def test_a_case_without_structures_and_one_of_one_voxel(tmp_path: Path) -> None:
    for shape in ((6, 5, 4), (1, 1, 1)):
        empty = stored(tmp_path, compact(shape))
        assert empty.foreground.by_class == {}
        assert empty.foreground.decided is None
        assert StoredSource(empty).prepared().image.shape == (2, *shape)


def test_all_of_it_comes_back(tmp_path: Path) -> None:
    case = compact()
    back = stored(tmp_path, case).compact()
    for found, kept in zip(back.channels, case.channels, strict=True):
        np.testing.assert_array_equal(found.values, kept.values)
        assert (found.values.dtype, found.mean, found.std) == (kept.values.dtype, kept.mean, kept.std)
    np.testing.assert_array_equal(back.classes, case.classes)
    for name in ("geometry", "file_geometry"):
        np.testing.assert_array_equal(getattr(back, name).affine_ras, getattr(case, name).affine_ras)
        assert getattr(back, name).shape_ijk == getattr(case, name).shape_ijk


@given(st.data())
@settings(max_examples=150)
def test_damage_is_always_found(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    whole = b"".join(packed_container(compact((9, 8, 7))))
    damaged = bytearray(whole)
    kind = data.draw(st.sampled_from(["flip", "cut", "longer", "zeros"]))
    place = data.draw(st.integers(0, len(whole) - 1))
    if kind == "flip":
        damaged[place] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == "cut":
        del damaged[place:]
    elif kind == "longer":
        damaged += whole[place:]
    else:
        damaged[place:] = bytes(len(whole) - place)
    path = tmp_path_factory.getbasetemp() / "damaged.case"
    path.write_bytes(damaged)
    assert damaged == whole or open_container(path, "a", ANNOTATED) is None


def test_what_vanishes_while_it_is_in_use_is_told(tmp_path: Path) -> None:
    source = StoredSource(stored(tmp_path, compact()))
    source.case.path.unlink()
    with pytest.raises(ResourceError, match=r"(?s)case a cannot be read.*--resume"):
        source.read(PatchLocation((0, 0, 0), (4, 4, 4)))
