"""The cache: never stale, never wrong, shared, bounded, and no reason to stop where it cannot be written."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg.core.case import CompactCase, Dataset
from medseg.core.environment import cache_folder
from medseg.core.errors import ReadError, ResourceError
from medseg.core.labels import LabelSchema
from medseg.data import cache as cache_module
from medseg.data import cache_key
from medseg.data.cache import CaseCache
from medseg.data.cache_key import Preparation, case_key
from medseg.data.config import CacheConfig, WindowNormalisation, ZScoreNormalisation
from medseg.data.container import StoredCase
from medseg.io.dataset import read_dataset

HOW = WindowNormalisation(low=-1000, high=1000, mean=10, std=200)
SPACING_MM = (2.0, 2.0, 2.0)
GB = 10**9


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    folder = tmp_path / "data"
    folder.mkdir()
    rng = np.random.default_rng(0)
    cases = []
    for name in "abcd":
        nib.save(nib.Nifti1Image(rng.integers(-900, 900, (20, 18, 16), np.int16), np.eye(4)), folder / f"{name}.nii")
        nib.save(nib.Nifti1Image(rng.integers(0, 3, (20, 18, 16), np.uint8), np.eye(4)), folder / f"{name}_label.nii")
        cases.append({"id": name, "image": f"{name}.nii", "label": f"{name}_label.nii", "split": "train"})
    document = {"name": "d", "modality": "CT", "labels": {"background": 0, "x": 1, "y": 2}, "cases": cases}
    (folder / "dataset.json").write_text(json.dumps(document))
    return read_dataset(folder)


def preparation(dataset: Dataset) -> Preparation:
    return Preparation(dataset, SPACING_MM, (HOW,))


def prepared(cache: CaseCache, dataset: Dataset, numbers=range(4)) -> list[StoredCase | CompactCase]:
    return [cache.prepared(dataset.cases[number], preparation(dataset)).case for number in numbers]


def entries(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "cases").iterdir())}


def same_voxels(one: StoredCase | CompactCase, other: StoredCase | CompactCase) -> bool:
    one, other = (case.compact() if isinstance(case, StoredCase) else case for case in (one, other))
    arrays = [[*(channel.values for channel in case.channels), case.classes] for case in (one, other)]
    pairs = zip(*arrays, strict=True)
    return all(a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in pairs)


@pytest.mark.parametrize("name", ["cache", "Prüfung ‐ 画像"])
def test_what_was_kept_is_found_and_is_what_would_be_prepared(
    dataset: Dataset, tmp_path: Path, name: str, monkeypatch
) -> None:
    made = prepared(CaseCache(tmp_path / name, GB), dataset)
    assert all(isinstance(case, StoredCase) for case in made)
    monkeypatch.setattr(cache_module, "read_case", None)  # nothing is read again
    found = prepared(CaseCache(tmp_path / name, GB), dataset)
    monkeypatch.undo()
    fresh = prepared(CaseCache(None, 0), dataset)
    assert all(isinstance(case, CompactCase) for case in fresh)
    for one, two, three in zip(made, found, fresh, strict=True):
        assert same_voxels(one, two)
        assert same_voxels(one, three)
        assert (
            (one.id, one.annotated.tolist()) == (two.id, two.annotated.tolist()) == (three.id, three.annotated.tolist())
        )


def changed_byte(dataset: Dataset, which: str) -> None:
    record = dataset.cases[0]
    path = record.images[0] if which == "image" else record.label
    times = path.stat().st_mtime_ns
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(times, times))


def test_the_key_changes_with_everything_that_the_voxels_depend_on(dataset: Dataset, monkeypatch) -> None:
    record, base = dataset.cases[0], preparation(dataset)
    relabelled = replace(
        dataset, labels=LabelSchema(tuple(replace(s, value=s.value + 1) for s in dataset.labels.structures))
    )
    keys = [
        case_key(record, base),
        case_key(dataset.cases[1], base),
        case_key(replace(record, label=None), base),
        case_key(replace(record, annotated=("x",)), base),
        case_key(replace(record, annotated=()), base),
        case_key(record, replace(base, spacing_ijk_mm=(2.0, 2.0, 2.0001))),
        *(case_key(record, replace(base, normalisation=(replaced,))) for replaced in (
            HOW.model_copy(update={"low": -999.0}), HOW.model_copy(update={"high": 999.0}),
            HOW.model_copy(update={"mean": 11.0}), HOW.model_copy(update={"std": 201.0}), ZScoreNormalisation(),
        )),
        case_key(record, replace(base, dataset=relabelled)),
        case_key(record, replace(base, dataset=replace(dataset, channels=("MR",)))),
    ]  # fmt: skip
    for which in ("image", "label"):
        changed_byte(dataset, which)  # size and time stay
        keys.append(case_key(record, base))
    cache_key._digest_of_code.cache_clear()
    monkeypatch.setattr(cache_key, "VERSION", "0.0.0")
    keys.append(case_key(record, base))
    cache_key._digest_of_code.cache_clear()
    monkeypatch.setattr(cache_key, "CODE", cache_key.CODE[:-1])
    keys.append(case_key(record, base))
    cache_key._digest_of_code.cache_clear()
    assert len(set(keys)) == len(keys)


def test_a_copy_elsewhere_has_the_same_key_and_keeps_its_own_name(dataset: Dataset, tmp_path: Path) -> None:
    record = dataset.cases[0]
    copy = tmp_path / "copy.nii"
    copy.write_bytes(record.images[0].read_bytes())
    other = replace(record, id="other", images=(copy,))
    cache = CaseCache(tmp_path / "cache", GB)
    one, two = (cache.prepared(each, preparation(dataset)).case for each in (record, other))
    assert (one.id, two.id) == ("a", "other")
    assert len(entries(tmp_path / "cache")) == 1


def test_every_file_of_a_series_counts(dataset: Dataset, tmp_path: Path) -> None:
    series = tmp_path / "series"
    series.mkdir()
    for number in range(3):
        (series / str(number)).write_bytes(bytes([number]))
    record = replace(dataset.cases[0], images=(series,))
    before = case_key(record, preparation(dataset))
    (series / "2").write_bytes(b"9")
    changed = case_key(record, preparation(dataset))
    (series / "2").unlink()
    assert len({before, changed, case_key(record, preparation(dataset))}) == 3


def test_a_case_that_cannot_be_read_is_told_and_not_kept(dataset: Dataset, tmp_path: Path) -> None:
    cache = CaseCache(tmp_path / "cache", GB)
    dataset.cases[0].images[0].write_bytes(b"nothing")
    dataset.cases[1].images[0].unlink()
    for record in dataset.cases[:2]:
        with pytest.raises(ReadError, match=record.images[0].name):
            cache.prepared(record, preparation(dataset))
    assert entries(tmp_path / "cache") == {}


def test_files_that_change_while_they_are_read_are_not_kept(dataset: Dataset, tmp_path: Path, monkeypatch) -> None:
    cache, read = CaseCache(tmp_path / "cache", GB), cache_module.read_case

    def read_and_change(record, dataset):
        case = read(record, dataset)
        changed_byte(dataset, "image")
        return case

    monkeypatch.setattr(cache_module, "read_case", read_and_change)
    kept = cache.prepared(dataset.cases[0], preparation(dataset))
    assert isinstance(kept.case, CompactCase)
    assert "were written to" in kept.problem
    assert entries(tmp_path / "cache") == {}


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "other"])
def test_a_damaged_entry_is_made_again(dataset: Dataset, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "cache"
    prepared(CaseCache(folder, GB), dataset)
    whole = entries(folder)
    for path in (folder / "cases").iterdir():
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 4
        path.write_bytes({"flip": content, "truncate": content[:-7], "empty": b"", "other": b"PK\3\4" * 99}[damage])
    again = prepared(CaseCache(folder, GB), dataset)
    assert entries(folder) == whole
    assert all(same_voxels(a, b) for a, b in zip(again, prepared(CaseCache(None, 0), dataset), strict=True))


RUN = """
import sys, time
from pathlib import Path
from medseg.data import cache as module
from medseg.data.cache import CaseCache
from medseg.data.cache_key import Preparation
from medseg.data.config import WindowNormalisation
from medseg.io.dataset import read_dataset

dataset = read_dataset(Path(sys.argv[1]))
preparation = Preparation(dataset, (2.0, 2.0, 2.0), (WindowNormalisation(low=-1000, high=1000, mean=10, std=200),))
cache = CaseCache(Path(sys.argv[2]), 10**9)
print("ready", flush=True)
sys.stdin.readline()
"""


def process(dataset: Dataset, folder: Path, code: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", RUN + code, str(dataset.source), str(folder)]
    started = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert started.stdout.readline() == "ready\n"
    return started


def go(started: subprocess.Popen[str]) -> None:
    started.stdin.write("\n")
    started.stdin.flush()


PREPARE = "print([type(cache.prepared(record, preparation).case).__name__ for record in dataset.cases])\n"


def test_two_processes_that_prepare_the_same_are_both_served(dataset: Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    both = [process(dataset, folder, PREPARE) for _ in range(2)]
    for one in both:
        go(one)
    for one in both:
        out, _ = one.communicate(timeout=60)
        assert (one.returncode, out.count("StoredCase")) == (0, 4)
    assert len(entries(folder)) == 4
    assert all(same_voxels(a, b) for a, b in zip(
        prepared(CaseCache(folder, GB), dataset), prepared(CaseCache(None, 0), dataset), strict=True
    ))  # fmt: skip


STUCK = """
class Stuck:
    turns = 0

    def __iter__(self):  # first its length is taken, then it is written
        self.turns += 1
        yield b"half"
        if self.turns == 2:
            print("writing", flush=True)
            time.sleep(600)

module.packed_container = lambda case: Stuck()
"""


def test_killed_while_writing_leaves_nothing_under_a_final_name(dataset: Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    killed = process(dataset, folder, STUCK + PREPARE)
    go(killed)
    assert killed.stdout.readline() == "writing\n"
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    names = list(entries(folder))
    assert len(names) == 1
    assert names[0].startswith(".medseg-tmp-")
    cases = prepared(CaseCache(folder, GB), dataset)
    assert all(isinstance(case, StoredCase) for case in cases), "its lock is gone with it"
    assert len(entries(folder)) == 4, "and so is what it left"


def test_the_cache_is_bounded_and_what_was_unused_for_longest_goes_first(dataset: Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    prepared(CaseCache(folder, GB), dataset, [0, 1, 2])
    sizes = {path: path.stat().st_size for path in (folder / "cases").iterdir()}
    for age, case in enumerate((1, 0, 2)):
        path = folder / "cases" / (case_key(dataset.cases[case], preparation(dataset)) + ".case")
        os.utime(path, (time.time() - 100 + age, time.time() - 100 + age))
    used = CaseCache(folder, GB)
    prepared(used, dataset, [1])  # used again
    del used
    prepared(CaseCache(folder, sum(sizes.values()) + 100), dataset, [3])
    kept = {case_key(dataset.cases[case], preparation(dataset)) + ".case" for case in (1, 2, 3)}
    assert set(entries(folder)) == kept
    assert sum(map(len, entries(folder).values())) <= sum(sizes.values()) + 100


def test_what_a_living_run_uses_is_never_evicted(dataset: Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    living = process(dataset, folder, PREPARE + "sys.stdout.flush(); time.sleep(600)")
    try:
        go(living)
        living.stdout.readline()
        before = entries(folder)
        record = dataset.cases[0]
        other = Preparation(dataset, (1.5, 2.0, 2.0), (HOW,))
        cache = CaseCache(folder, sum(map(len, before.values())) + 10)
        kept = cache.prepared(record, other)
        assert isinstance(kept.case, CompactCase), "there is no room for it"
        assert "cache.max_gb" in kept.problem
        assert entries(folder) == before
    finally:
        living.kill()
        living.wait()
    cache = CaseCache(folder, sum(map(len, before.values())) + 10)
    assert isinstance(cache.prepared(record, other).case, StoredCase)
    assert len(list((folder / "runs").iterdir())) == 1, "files of runs that ended go away"


def test_a_folder_that_cannot_be_made_is_told(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    kept = CaseCache(tmp_path / "file" / "cache", GB).prepared(dataset.cases[0], preparation(dataset))
    assert isinstance(kept.case, CompactCase)
    assert "Not a directory" in kept.problem
    assert "cache.folder" in kept.problem


def test_a_read_only_cache_is_read(dataset: Dataset, tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "cache"
    prepared(CaseCache(folder, GB), dataset, [0])
    before = entries(folder)

    def refused(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(CaseCache, "_locked", refused)
    monkeypatch.setattr(os, "utime", refused)
    cache = CaseCache(folder, GB)
    assert isinstance(prepared(cache, dataset, [0])[0], StoredCase)
    kept = cache.prepared(dataset.cases[1], preparation(dataset))
    assert isinstance(kept.case, CompactCase)
    assert "Read-only file system" in kept.problem
    assert entries(folder) == before


def test_a_full_disk_is_told_and_the_next_cases_are_not_tried(dataset: Dataset, tmp_path: Path, monkeypatch) -> None:
    cache, tried = CaseCache(tmp_path / "cache", GB), []

    def full(path, write, **_):
        tried.append(path)
        write(path.with_suffix(".case.tmp"))
        raise ResourceError("the disk is full", code="resource.disk") from OSError(
            errno.ENOSPC, "No space left on device"
        )

    monkeypatch.setattr(cache_module, "write_atomically", full)
    kept = [cache.prepared(record, preparation(dataset)) for record in dataset.cases]
    assert all(isinstance(each.case, CompactCase) and "No space left on device" in each.problem for each in kept)
    assert len(tried) == 1


def test_a_stopped_process_does_not_hold_up_others_for_ever(dataset: Dataset, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(cache_module, "LOCK_WAIT_S", 0.1)
    cache, holder = CaseCache(tmp_path / "cache", GB), CaseCache(tmp_path / "cache", GB)
    with holder._locked():
        kept = [cache.prepared(record, preparation(dataset)) for record in dataset.cases[:2]]
    assert all(isinstance(each.case, CompactCase) and "does not let go" in each.problem for each in kept)


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert CaseCache.open(CacheConfig(folder=tmp_path / "given")).folder == tmp_path / "given"
    assert CaseCache.open(CacheConfig(max_gb=0)).folder is None
    assert CaseCache.open(CacheConfig(max_gb=0)).problem == ""
    monkeypatch.delenv("MEDSEG_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "medseg"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "medseg"
    assert CaseCache.open(CacheConfig()).folder == tmp_path / ".cache" / "medseg"


def test_what_another_run_has_made_meanwhile_is_kept(dataset: Dataset, tmp_path: Path) -> None:
    cache = CaseCache(tmp_path / "cache", GB)
    compact = prepared(CaseCache(None, 0), dataset, [0])[0]
    first = cache.store("key", compact)
    inode = first.path.stat().st_ino
    assert same_voxels(cache.store("key", compact), first)
    assert first.path.stat().st_ino == inode
