"""``medseg convert`` as a user meets it: real data, damaged cases, interruptions, folders that hold other things."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg.io.case import read_case
from medseg.io.dataset import read_dataset

FORMS = ("nnunet", "msd", "native")


@pytest.fixture
def scans(tmp_path: Path, sample: Path) -> Path:
    """A copy of the sample, because linked files are the same files."""
    shutil.copytree(sample, tmp_path / "scans")
    return tmp_path / "scans"


def hashes(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "conversion.json"
    }


def assert_same_dataset(one: Path, other: Path) -> None:
    left, right = read_dataset(one), read_dataset(other)
    assert (left.name, left.channels, left.labels) == (right.name, right.channels, right.labels)
    for a, b in zip(left.cases, right.cases, strict=True):
        assert (a.id, a.patient, a.annotated, a.split) == (b.id, b.patient, b.annotated, b.split)
        assert [path.read_bytes() for path in a.images] == [path.read_bytes() for path in b.images]
        assert (a.label is None and b.label is None) or a.label.read_bytes() == b.label.read_bytes()


@pytest.mark.parametrize("form", FORMS)
def test_the_sample_there_and_back(medseg: Callable, tmp_path: Path, scans: Path, form: str) -> None:
    before = hashes(scans)
    answer = medseg("convert", scans, "--to", form, "--out", tmp_path / "there", "--json")
    assert answer.exit_code == 0
    result = answer.json
    assert {case["status"] for case in result["cases"]} == {"done"}
    assert bool(result["warnings"]) is (form != "native")
    assert all(warning in answer.stderr for warning in result["warnings"])
    assert (tmp_path / "there" / "medseg.json").exists() is (form != "native")
    assert medseg("convert", tmp_path / "there", "--to", "native", "--out", tmp_path / "back").exit_code == 0
    assert_same_dataset(scans, tmp_path / "back")
    assert hashes(scans) == before


@pytest.mark.parametrize(
    "name",
    [
        "sarcoma_petct",
        pytest.param("hippocampus_mr", marks=pytest.mark.slow),
        pytest.param("hn_oar", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("form", FORMS)
def test_real_data_there_and_back(medseg: Callable, tmp_path: Path, shared_data: Path, name: str, form: str) -> None:
    folder = tmp_path / name
    shutil.copytree(shared_data / name, folder, copy_function=shutil.copyfile)
    for path in (folder, *(child for child in folder.iterdir() if child.is_dir())):
        path.chmod(0o755)
    assert medseg("convert", folder, "--to", form, "--out", tmp_path / "there").exit_code == 0
    assert medseg("convert", tmp_path / "there", "--to", "native", "--out", tmp_path / "back").exit_code == 0
    assert_same_dataset(folder, tmp_path / "back")


def test_a_case_that_fails_is_told_and_the_others_go_on(medseg: Callable, tmp_path: Path, scans: Path) -> None:
    dataset = read_dataset(scans)
    broken, misplaced = dataset.cases[0], dataset.cases[1]
    content = broken.images[0].read_bytes()
    broken.images[0].write_bytes(content[:-40])
    nib.save(nib.Nifti1Image(np.zeros((3, 3, 3), np.uint8), np.eye(4)), misplaced.label)
    arguments = ("convert", scans, "--to", "nnunet", "--out", tmp_path / "out")
    answer = medseg(*arguments, "--json")
    assert answer.exit_code == 1
    failed = {case["id"]: case["error"]["code"] for case in answer.json["cases"] if case["status"] == "failed"}
    assert failed == {broken.id: "read.truncated", misplaced.id: "geometry.label"}
    assert len(read_dataset(tmp_path / "out").cases) == len(dataset.cases) - 2
    named = [path for path in (tmp_path / "out").rglob("*.nii.gz") if path.name.startswith(tuple(failed))]
    assert [path for path in named if path.name.startswith((f"{broken.id}_", f"{broken.id}."))] == []
    broken.images[0].write_bytes(content)
    assert medseg(*arguments).exit_code == 1
    assert len(read_dataset(tmp_path / "out").cases) == len(dataset.cases) - 1
    for case in dataset.cases:
        case.images[0].write_bytes(b"no scan")
    assert medseg(*arguments).exit_code == 6
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_nothing_is_mixed_with_other_things(medseg: Callable, tmp_path: Path, scans: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    refused = medseg("convert", scans, "--to", "msd", "--out", out)
    assert refused.exit_code == 2 and "other files" in refused.stderr
    assert [path.name for path in out.iterdir()] == ["notes.txt"]
    assert medseg("convert", scans, "--to", "msd", "--out", scans).exit_code == 2
    assert medseg("convert", scans, "--to", "msd", "--out", tmp_path / "msd").exit_code == 0
    refused = medseg("convert", scans, "--to", "nnunet", "--out", tmp_path / "msd")
    assert refused.exit_code == 2 and "another" in refused.stderr


def test_a_conversion_again_keeps_what_is_there(medseg: Callable, tmp_path: Path, scans: Path) -> None:
    arguments = ("convert", scans, "--to", "nnunet", "--out", tmp_path / "out", "--json")
    first = medseg(*arguments).json
    before = hashes(tmp_path / "out")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.nii.gz")}
    again = medseg(*arguments).json
    assert set(again["files"]) == {"kept"}
    assert again["files"]["kept"] == sum(first["files"].values())
    assert hashes(tmp_path / "out") == before
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_killed_and_started_again_it_completes(medseg: Callable, tmp_path: Path, scans: Path) -> None:
    assert medseg("convert", scans, "--to", "nnunet", "--out", tmp_path / "whole").exit_code == 0
    command = [sys.executable, "-m", "pipelines.cli", "convert", str(scans), "--to", "nnunet", "--out"]
    num_cut_short = 0
    for number in range(3):
        out = tmp_path / f"killed{number}"
        process = subprocess.Popen(
            [*command, str(out)], env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL
        )
        while len(list(out.glob("*/*.nii.gz"))) <= 5 * number and process.poll() is None:
            time.sleep(0.002)
        process.kill()
        process.wait()
        num_cut_short += not (out / "dataset.json").exists()
        assert medseg("convert", scans, "--to", "nnunet", "--out", out).exit_code == 0
        assert hashes(out) == hashes(tmp_path / "whole")
    assert num_cut_short > 0


def test_the_form_is_what_other_programs_read(medseg: Callable, tmp_path: Path, scans: Path) -> None:
    """MONAI lists the Decathlon's cases as the original's fully annotated ones, with the same voxels."""
    from monai.data import load_decathlon_datalist

    assert medseg("convert", scans, "--to", "msd", "--out", tmp_path / "out").exit_code == 0
    dataset = read_dataset(scans)
    listed = load_decathlon_datalist(str(tmp_path / "out" / "dataset.json"), data_list_key="training")
    full = {
        record.id: record
        for record in dataset.cases
        if record.annotated is None or set(record.annotated) == set(dataset.labels.names)
    }
    assert {Path(entry["image"]).name.split(".")[0] for entry in listed} == set(full)
    for entry in listed:
        case = read_case(full[Path(entry["image"]).name.split(".")[0]], dataset)
        np.testing.assert_array_equal(nib.load(entry["image"]).get_fdata(), case.image.array[0])
        np.testing.assert_array_equal(nib.load(entry["label"]).get_fdata(), case.label.array)
