"""``medseg check`` as a user meets it: real cases, real defects, and one seeded defect of each kind."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medseg.data.check import workers
from pipelines.check import CheckOptions, run

Documents = dict[str, Any]

NUM_CLEAN = 20

SEEDS = (1, 2, 3)
"""Which cases are clean and which get which defect; the first in every run, the others in slow ones."""


def document_of(folder: Path) -> Documents:
    document: Documents = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    for case in document["cases"]:
        case["image"], case["label"] = str(folder / case["image"]), str(folder / case["label"])
    return document


def write(folder: Path, document: Documents, cases: list[Documents]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "dataset.json"
    path.write_text(json.dumps({**document, "cases": cases}), encoding="utf-8")
    return path


def check(path: Path, **options: Any) -> list[Documents]:
    found: list[Documents] = run(path, CheckOptions(**options)).result["findings"]
    return found


def test_real_defects_are_named_and_sound_cases_are_not(shared_data: Path, tmp_path: Path) -> None:
    sound, defective = document_of(shared_data / "hn_oar"), document_of(shared_data / "hn_oar_defects")
    findings = check(write(tmp_path, sound, [*sound["cases"], *defective["cases"]]))
    named = {finding["case"] for finding in findings}
    wrong = {finding["case"] for finding in findings if finding["level"] == "error"}
    of_defective, of_sound = ({case["id"] for case in document["cases"]} for document in (defective, sound))
    assert (len(of_defective), len(of_sound)) == (12, 121)
    assert len(named & of_defective) >= 11
    assert len(named & of_sound) <= 12
    assert not wrong & of_sound


@pytest.mark.parametrize("name", ["hippocampus_mr", "sarcoma_petct"])
def test_other_modalities_are_not_measured_as_ct(shared_data: Path, name: str) -> None:
    assert check(shared_data / name) == []


def test_the_sample_is_clean(sample: Path) -> None:
    outcome = run(sample, CheckOptions())
    assert (outcome.exit_code, outcome.result) == (0, {"findings": []})
    assert check(sample / "images") == []


# One seeded defect of each kind. Each changes (image, label, affine of image, affine of label) of one case.
Volumes = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
Change = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], Volumes]


def in_image(change: Callable[[np.ndarray], np.ndarray]) -> Change:
    return lambda image, label, first, second: (change(image.astype(np.float64)), label, first, second)


def in_label(change: Callable[[np.ndarray], np.ndarray]) -> Change:
    return lambda image, label, first, second: (image, change(label), first, second)


def in_both(change: Callable[[np.ndarray], np.ndarray]) -> Change:
    return lambda image, label, first, second: (change(image), change(label), first, second)


def with_affine(*scale: float) -> Change:
    turn = np.diag([*scale, 1.0])
    return lambda image, label, first, second: (image, label, first @ turn, second @ turn)


def with_a_hole(image: np.ndarray) -> np.ndarray:
    image[2:5, 2:5, 2:5] = np.nan
    return image


def with_value(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(label: np.ndarray) -> np.ndarray:
        changed = label.astype(np.float64)
        changed.flat[np.flatnonzero(label)[:30]] = value
        return changed

    return change


def blanked(image: np.ndarray, label: np.ndarray, first: np.ndarray, second: np.ndarray) -> Volumes:
    """Everything above half of the brainstem is cut away."""
    planes = np.flatnonzero((label == 1).any(axis=(0, 1)))
    image[:, :, planes.mean().astype(int) :] = -1000
    return image, label, first, second


def kept_around_contours(image: np.ndarray, label: np.ndarray, first: np.ndarray, second: np.ndarray) -> Volumes:
    """The same, but for what surrounds the contours."""
    from scipy import ndimage

    planes = np.flatnonzero((label == 1).any(axis=(0, 1)))
    kept = ndimage.binary_dilation(label > 0)
    kept[:, :, : planes.mean().astype(int)] = True
    return np.where(kept, image, -1000), label, first, second


def moved_into_the_corner(label: np.ndarray) -> np.ndarray:
    label = label.copy()
    edge = round(np.count_nonzero(label == 3) ** (1 / 3))
    label[label == 3] = 0
    label[1 : 1 + edge, 1 : 1 + edge, 3 : 3 + edge] = 3
    return label


def grown(label: np.ndarray) -> np.ndarray:
    from scipy import ndimage

    label = label.copy()
    label[ndimage.binary_dilation(label == 1, iterations=7)] = 1
    return label


def shrunk(label: np.ndarray) -> np.ndarray:
    label = label.copy()
    label.flat[np.flatnonzero(label == 7)[5:]] = 0
    return label


def exchanged(one: int, other: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda label: np.where(label == one, other, np.where(label == other, one, label))


def partly_exchanged(label: np.ndarray) -> np.ndarray:
    """The upper half of the left parotid carries the right one's value."""
    upper = label == 4
    upper[:, :, : np.flatnonzero(upper.any(axis=(0, 1))).mean().astype(int)] = False
    return np.where(upper, 3, label)


def turned_round(axis: int) -> Change:
    return lambda image, label, first, second: (np.flip(image, axis), np.flip(label, axis), first, second)


def few_slices(count: int) -> Change:
    def change(image: np.ndarray, label: np.ndarray, first: np.ndarray, second: np.ndarray) -> Volumes:
        start = np.flatnonzero((label > 0).any(axis=(0, 1))).mean().astype(int)
        kept = slice(start, start + count)
        return image[:, :, kept], label[:, :, kept], first, second

    return change


def shifted_label(image: np.ndarray, label: np.ndarray, first: np.ndarray, second: np.ndarray) -> Volumes:
    return image, label, first, second + np.array([[0, 0, 0, 2.0]] * 3 + [[0, 0, 0, 0]])


DEFECTS: dict[str, tuple[Change, str]] = {
    "offset": (in_image(lambda image: image + 1024), "image.hu_offset"),
    "offset 2": (in_image(lambda image: image - 1000), "image.hu_offset"),
    "offset 3": (in_image(lambda image: image + 400), "image.hu_offset"),
    "unsigned": (in_image(lambda image: image % 65536), "image.hu_scale"),
    "cut off at 0": (in_image(lambda image: np.maximum(image, 0)), "image.hu_scale"),
    "0 to 1": (in_image(lambda image: np.clip((image + 1000) / 2000, 0, 1)), "image.hu_scale"),
    "z scores": (in_image(lambda image: (image - image.mean()) / image.std()), "image.hu_scale"),
    "8 bit": (in_image(lambda image: np.clip((image + 160) / 400 * 255, 0, 255).round()), "image.hu_scale"),
    "16 bit": (in_image(lambda image: np.clip((image + 1000) * 16, 0, 65535)), "image.hu_scale"),
    "window": (in_image(lambda image: np.clip(image, -160, 240)), "image.hu_scale"),
    "doubled": (in_image(lambda image: image * 2), "image.hu_scale"),
    "constant": (in_image(lambda image: np.full_like(image, -1000)), "image.constant"),
    "NaN": (in_image(with_a_hole), "read.nonfinite"),
    "strange value": (in_label(with_value(42)), "label.value"),
    "negative value": (in_label(with_value(-3)), "label.range"),
    "fractions": (in_label(with_value(1.5)), "label.noninteger"),
    "empty structure": (in_label(lambda label: np.where(label == 1, 0, label)), "label.empty"),
    "empty label": (in_label(np.zeros_like), "label.empty"),
    "no CT above": (blanked, "label.outside_image"),
    "a rim of CT": (kept_around_contours, "label.outside_image"),
    "in the corner": (in_label(moved_into_the_corner), "label.outside_image"),
    "huge": (in_label(grown), "label.volume"),
    "tiny": (in_label(shrunk), "label.volume"),
    "left is right": (in_label(exchanged(3, 4)), "label.swapped"),
    "half left is right": (in_label(partly_exchanged), "label.spread"),
    "two exchanged": (in_label(exchanged(2, 7)), "label.position"),
    "mirrored": (turned_round(0), "label.swapped"),
    "back to front": (turned_round(1), "geometry.orientation"),
    "upside down": (turned_round(2), "geometry.orientation"),
    "mirrored header": (with_affine(-1, 1, 1), "label.swapped"),
    "centimetres": (with_affine(0.1, 0.1, 0.1), "geometry.spacing_outlier"),
    "tenfold": (with_affine(10, 10, 10), "geometry.spacing"),
    "stretched": (with_affine(1, 1, 4), "geometry.spacing_outlier"),
    "label upside down": (in_label(lambda label: label[:, :, ::-1]), "label.mismatch"),
    "label shifted in space": (shifted_label, "geometry.label"),
    "label of another shape": (in_label(lambda label: label[:, :, :-2]), "geometry.label"),
    "3 slices": (few_slices(3), "image.few_slices"),
    "14 slices": (few_slices(14), "image.few_slices"),
}


def damaged(content: bytes, how: str) -> bytes:
    if how == "truncated":
        return content[: len(content) // 2]
    if how == "wrong check sum":
        return content[:-6] + bytes([content[-6] ^ 1]) + content[-5:]
    if how == "empty":
        return b""
    return b"no image at all"


DAMAGES = {"truncated": "read.truncated", "wrong check sum": "read.crc", "empty": "read.empty", "text": "read.format"}


class Seeding:
    """Clean cases, and cases with one defect each, of distinct patients."""

    def __init__(self, shared_data: Path, folder: Path, seed: int) -> None:
        self.folder = folder
        folder.mkdir()
        self.document = document_of(shared_data / "hn_oar")
        rng = np.random.default_rng(seed)
        cases = [self.document["cases"][place] for place in rng.permutation(len(self.document["cases"]))]
        self.clean = cases[:NUM_CLEAN]
        needed = {"brainstem", "spinal_cord", "parotid_right", "parotid_left", "mandible"}
        self.sources = iter([case for case in cases[NUM_CLEAN:] if needed <= set(case["annotated"])])
        self.seeded: list[Documents] = []
        self.expected: dict[str, tuple[str, str]] = {}

    def add(self, name: str, code: str, of_label: bool, **changed: Any) -> Documents:
        case = {**next(self.sources), **changed, "id": name}
        self.seeded.append(case)
        self.expected[name] = (case["label" if of_label else "image"], code)
        return case

    def change(self, name: str, change: Change, code: str) -> None:
        source = next(self.sources)
        image, label = (nib.load(source[part]) for part in ("image", "label"))
        arrays = (np.asarray(image.dataobj).copy(), np.asarray(label.dataobj).copy())
        changed = change(*arrays, image.affine, label.affine)
        case = {**source, "id": name}
        for part, array, affine in zip(("image", "label"), changed[:2], changed[2:], strict=True):
            path = self.folder / f"{name.replace(' ', '_')}_{part}.nii.gz"
            whole = np.isfinite(array).all() and (array == array.round()).all()
            stored = array.astype(np.int32 if whole else np.float32)
            path.write_bytes(gzip.compress(nib.Nifti1Image(stored, affine).to_bytes(), 1))
            case[part] = str(path)
        self.seeded.append(case)
        of_image = code.startswith(("image.", "read.nonfinite")) or code in (
            "geometry.spacing",
            "geometry.spacing_outlier",
        )
        self.expected[name] = (case["image" if of_image else "label"], code)

    def damage(self, part: str, how: str, code: str) -> None:
        case = self.add(f"{how} file of the {part}", code, part == "label")
        path = self.folder / f"{how}_{part}.nii.gz"
        path.write_bytes(damaged(Path(case[part]).read_bytes(), how))
        case[part] = str(path)
        self.expected[case["id"]] = (case[part], code)


def seeded(shared_data: Path, folder: Path, seed: int) -> Seeding:
    """All kinds in one dataset."""
    made = Seeding(shared_data, folder, seed)
    for name, (change, code) in DEFECTS.items():
        made.change(name, change, code)
    for how, code in DAMAGES.items():
        for part in ("image", "label"):
            made.damage(part, how, code)
    made.add("missing", "read.missing", False, image=str(folder / "nowhere.nii.gz"))
    unlisted = made.add("unlisted", "label.unlisted", True)
    unlisted["annotated"] = [name for name in unlisted["annotated"] if name != "mandible"]
    for name, split in (("first scan", "train"), ("second scan", "validation")):
        made.add(name, "split.patient", False, patient="somebody", split=split)
    twin = made.add("original", "image.duplicate", False)
    copy = nib.load(twin["image"])
    path = folder / "other_name.nii"
    nib.save(nib.Nifti1Image(np.asarray(copy.dataobj).astype(np.float32), copy.affine), path)
    made.seeded.append({**twin, "id": "copy", "image": str(path)})
    made.expected["copy"] = (str(path), "image.duplicate")
    return made


@pytest.mark.parametrize("seed", [SEEDS[0], *(pytest.param(seed, marks=pytest.mark.slow) for seed in SEEDS[1:])])
def test_every_seeded_defect_is_named_with_its_file(shared_data: Path, tmp_path: Path, seed: int) -> None:
    made = seeded(shared_data, tmp_path / "seeded", seed)
    path = write(tmp_path / "all", made.document, made.clean + made.seeded)
    findings = check(path)
    found = {(finding["case"], finding["file"], finding["code"]) for finding in findings}
    missed = [(name, *expected) for name, expected in made.expected.items() if (name, *expected) not in found]
    assert len(made.expected) >= 50
    assert missed == []
    assert len(found) == len(findings), "nothing is told twice"
    clean = {case["id"] for case in made.clean}
    assert [finding for finding in findings if finding["case"] in clean and finding["level"] == "error"] == []


@pytest.mark.parametrize("seed", [SEEDS[0], *(pytest.param(seed, marks=pytest.mark.slow) for seed in SEEDS[1:])])
def test_clean_cases_by_themselves(shared_data: Path, tmp_path: Path, seed: int) -> None:
    made = Seeding(shared_data, tmp_path / "none", seed)
    findings = check(write(tmp_path / "clean", made.document, made.clean))
    assert [finding for finding in findings if finding["level"] == "error"] == []
    assert len(findings) <= 1


@pytest.fixture
def with_a_defect(sample: Path, tmp_path: Path) -> Path:
    """The sample, and a case whose image has lost its end; its name is a trap for HTML."""
    document = document_of(sample)
    cut = tmp_path / "data" / "<b>cut.nii.gz"
    cut.parent.mkdir()
    cut.write_bytes(Path(document["cases"][0]["image"]).read_bytes()[:-4])
    bad = {**document["cases"][0], "id": "<i>bad", "image": cut.name}
    return write(tmp_path / "data", document, [*document["cases"], bad])


def test_the_command(medseg: Any, with_a_defect: Path, tmp_path: Path) -> None:
    answer = medseg("check", with_a_defect, "--json", "--out", tmp_path / "out", "--workers", 2)
    assert answer.exit_code == 1
    (finding,) = answer.json["findings"]
    assert set(finding) == {"case", "file", "code", "level", "message", "remedy"}
    assert (finding["case"], finding["file"]) == ("<i>bad", "<b>cut.nii.gz")
    assert (finding["code"], finding["level"]) == ("read.truncated", "error")
    assert json.loads((tmp_path / "out" / "findings.json").read_text(encoding="utf-8")) == answer.json
    page = (tmp_path / "out" / "findings.html").read_text(encoding="utf-8")
    assert (
        "read.truncated" in page
        and "&lt;b&gt;cut" in page
        and "<b>cut" not in page
        and "http" not in page.lower()[200:]
    )
    text = medseg("check", with_a_defect)
    assert text.exit_code == 1 and "cut.nii.gz" in text.stdout and finding["remedy"] in text.stdout


def test_what_is_allowed_is_a_warning(medseg: Any, with_a_defect: Path) -> None:
    answer = medseg("check", with_a_defect, "--json", "--allow", "read.truncated,image.constant")
    assert answer.exit_code == 0
    assert [(finding["code"], finding["level"]) for finding in answer.json["findings"]] == [
        ("read.truncated", "warning")
    ]


def test_a_folder_of_images(sample: Path, tmp_path: Path) -> None:
    images = sorted((sample / "images").iterdir())[:3]
    for image in images:
        shutil.copy(image, tmp_path / image.name)
    shutil.copy(images[0], tmp_path / "again.nii.gz")
    loaded = nib.load(images[1])
    shifted = nib.Nifti1Image(np.asarray(loaded.dataobj) + 1024, loaded.affine)
    nib.save(shifted, tmp_path / "raw.nii.gz")
    found = {(finding["file"], finding["code"], finding["level"]) for finding in check(tmp_path)}
    assert {
        ("again.nii.gz", "image.duplicate", "error"),
        (images[0].name, "image.duplicate", "error"),
        ("raw.nii.gz", "image.hu_offset", "error"),
    } <= found
    assert {file for file, _, _ in found} == {"again.nii.gz", images[0].name, images[1].name, "raw.nii.gz"}


def test_pictures_show_the_place(shared_data: Path, tmp_path: Path) -> None:
    defective = document_of(shared_data / "hn_oar_defects")
    defective["cases"][0]["label"] = defective["cases"][1]["label"]
    run(write(tmp_path, defective, defective["cases"]), CheckOptions(out=tmp_path / "out"))
    page = (tmp_path / "out" / "findings.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == page.count("<section>") >= 1


KILLS_ITSELF = """
import json, os, sys; sys.path[:] = json.loads(sys.argv[1])
from medseg.data.check import workers
measure = workers.measure_case
def measured(record, dataset):
    if record.id.endswith("killed"):
        os.kill(os.getpid(), 9)
    if record.id.endswith("raises"):
        raise RuntimeError("a bug")
    return measure(record, dataset)
workers.measure_case = measured
workers.work(int(sys.argv[2]))
"""


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_killed_worker_names_its_case_and_the_others_go_on(
    sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_workers: int
) -> None:
    monkeypatch.setattr(workers, "STARTER", KILLS_ITSELF)
    document = document_of(sample)
    cases = document["cases"]
    for place, name in ((0, "first killed"), (3, "raises"), (4, "second killed"), (7, "last killed")):
        cases[place]["id"] = name
    cases[5]["label"] = str(tmp_path / "none.nii.gz")
    findings = check(write(tmp_path, document, cases), workers=num_workers)
    assert [(finding["case"], finding["code"]) for finding in findings] == [
        ("first killed", "check.killed"),
        ("raises", "check.failed"),
        ("second killed", "check.killed"),
        (cases[5]["id"], "read.missing"),
        ("last killed", "check.killed"),
    ]


def test_workers_give_the_same_however_many_they_are(with_a_defect: Path) -> None:
    assert check(with_a_defect, workers=1) == check(with_a_defect, workers=3)


def test_a_worker_that_cannot_start_is_an_error_and_no_endless_loop(
    sample: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medseg.core.errors import ResourceError

    monkeypatch.setattr(workers, "STARTER", "raise SystemExit(3)")
    with pytest.raises(ResourceError, match="could not be started"):
        run(sample, CheckOptions())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_when_the_parent_ends_its_workers_end_too(sample: Path, tmp_path: Path, number: signal.Signals) -> None:
    document = document_of(sample)
    many = [{**case, "id": f"{case['id']}_{copy}"} for copy in range(200) for case in document["cases"]]
    path = write(tmp_path, document, many)
    command = [sys.executable, "-m", "pipelines.cli", "check", str(path), "--workers", "2", "--quiet"]
    parent = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE)
    group = os.getpgid(parent.pid)
    while len(members(group)) < 3:
        assert parent.poll() is None
        time.sleep(0.05)
    time.sleep(0.5)
    if number == signal.SIGINT:
        os.killpg(group, number)  # as a terminal does
    else:
        parent.kill()
    _, told = parent.communicate(timeout=20)
    assert parent.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL)
    assert b"Traceback" not in told
    deadline = time.monotonic() + 10
    while members(group) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert members(group) == []


def members(group: int) -> list[int]:
    """Processes of a process group."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(int(entry.parent.name))
    return found
