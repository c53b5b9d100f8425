from __future__ import annotations

import itertools
import json
import shutil
import threading
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg.core.case import CaseRecord

SCAN = "pt_222"
ORIENTATIONS = ["RAS", "LPS", "LAS", "RPI", "SAR", "PIL", "ASL", "IPR"]


def reoriented(image: nib.Nifti1Image, codes: str) -> nib.Nifti1Image:
    start = nib.orientations.io_orientation(image.affine)
    turn = nib.orientations.ornt_transform(start, nib.orientations.axcodes2ornt(tuple(codes)))
    return image.as_reoriented(turn)


@pytest.fixture
def scans(tmp_path: Path, sample: Path) -> Path:
    """Three good files and three bad ones."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for name in ("pt_4", "pt_31", "pt_222"):
        shutil.copy(sample / "images" / f"{name}.nii.gz", folder)
    content = (folder / "pt_4.nii.gz").read_bytes()
    (folder / "truncated.nii.gz").write_bytes(content[: len(content) // 2])
    (folder / "empty.nii.gz").write_bytes(b"")
    (folder / "text.nii.gz").write_bytes(b"I am no scan")
    return folder


def test_three_good_and_three_bad_files(tmp_path: Path, scans: Path, run_folder: Path, medseg_process) -> None:
    """And a fresh process gives the same bytes again."""
    for out in ("first", "second"):
        answer = medseg_process("predict", run_folder, scans, "--out", tmp_path / out, "--json", "--quiet")
        assert answer.exit_code == 1
        assert (answer.json["done"], answer.json["failed"]) == (3, 3)
        codes = {case: error["code"] for case, error in answer.json["errors"].items()}
        assert codes == {"truncated": "read.truncated", "empty": "read.empty", "text": "read.format"}
        assert sorted(path.name for path in (tmp_path / out).glob("*.nii.gz")) == [
            "pt_222.nii.gz",
            "pt_31.nii.gz",
            "pt_4.nii.gz",
        ]
        for case in codes:
            assert f"{case} failed" in answer.stderr
    for name in ("pt_4", "pt_31", "pt_222"):
        first, second = (tmp_path / out / f"{name}.nii.gz" for out in ("first", "second"))
        assert first.read_bytes() == second.read_bytes()
        before, after = nib.load(scans / first.name), nib.load(first)
        np.testing.assert_array_equal(before.affine, after.affine)
        assert before.shape == after.shape
        for key in ("qform_code", "sform_code", "xyzt_units", "pixdim", "srow_x"):
            np.testing.assert_array_equal(before.header[key], after.header[key])
    manifest = json.loads((tmp_path / "first" / "manifest.json").read_text())
    entry = next(entry for entry in manifest["cases"] if entry["id"] == "pt_4")
    assert entry["status"] == "done"
    assert set(entry["volume_ml"]) == set(entry["truncated"])
    assert {"read", "prepare", "network", "resolve", "total"} <= set(entry["seconds"])
    assert entry["peak_memory_bytes"] > 0
    for table in ("labels.json", "labels.ctbl", "labels.txt"):
        assert (tmp_path / "first" / table).exists()


def test_every_case_failing_is_exit_6(tmp_path: Path, scans: Path, run_folder: Path, medseg) -> None:
    answer = medseg(
        "predict", run_folder, scans / "empty.nii.gz", scans / "none.nii.gz", "--out", tmp_path / "out", "--json"
    )
    assert answer.exit_code == 6
    assert {error["code"] for error in answer.json["errors"].values()} == {"read.empty", "read.missing"}


def test_orientation_in_practice(tmp_path: Path, sample: Path, run_folder: Path, medseg) -> None:
    """One scan in eight orientations: the same grid back, and not one voxel different in space."""
    image = nib.load(sample / "images" / f"{SCAN}.nii.gz")
    (tmp_path / "in").mkdir()
    for codes in ORIENTATIONS:
        nib.save(reoriented(image, codes), tmp_path / "in" / f"{codes}.nii.gz")
    assert medseg("predict", run_folder, tmp_path / "in", "--out", tmp_path / "out").exit_code == 0
    canonical = {}
    for codes in ORIENTATIONS:
        before, after = nib.load(tmp_path / "in" / f"{codes}.nii.gz"), nib.load(tmp_path / "out" / f"{codes}.nii.gz")
        assert before.shape == after.shape
        np.testing.assert_array_equal(before.affine, after.affine)
        canonical[codes] = np.asarray(reoriented(after, "RAS").dataobj)
    assert canonical["RAS"].max() > 0, "an empty prediction would prove nothing"
    for first, second in itertools.pairwise(ORIENTATIONS):
        assert int((canonical[first] != canonical[second]).sum()) == 0


def test_what_is_done_is_skipped_until_something_changes(tmp_path: Path, scans: Path, run_folder: Path, medseg) -> None:
    scan, out = scans / "pt_4.nii.gz", tmp_path / "out"

    def predict(*options: object):
        return medseg("predict", run_folder, scan, "--out", out, "--json", *options)

    assert predict().json["done"] == 1
    first = (out / "pt_4.nii.gz").read_bytes()
    assert predict().json["skipped"] == 1
    assert json.loads((out / "manifest.json").read_text())["cases"][0]["status"] == "skipped"
    assert predict("--overwrite").json["done"] == 1
    (out / "manifest.json").unlink()
    assert predict().json["done"] == 1, "what a killed run left is the same and accepted"
    assert (out / "pt_4.nii.gz").read_bytes() == first
    other = predict("--overlap", 0.0)
    if other.exit_code == 6:  # other windows gave another label map, which is not overwritten unasked
        assert other.json["errors"]["pt_4"]["code"] == "write.exists"
    assert predict("--overlap", 0.0, "--overwrite").exit_code == 0
    (out / "pt_4.nii.gz").write_bytes(b"altered by somebody")
    assert predict("--overlap", 0.0).exit_code == 6, "somebody else's file is not overwritten"


def test_each_option_of_predict_changes_something(
    tmp_path: Path, scans: Path, sample: Path, run_folder: Path, medseg
) -> None:
    scan = scans / "pt_4.nii.gz"

    def settings(name: str, *options: object) -> dict[str, object]:
        assert medseg("predict", run_folder, scan, "--out", tmp_path / name, *options).exit_code == 0
        return json.loads((tmp_path / name / "manifest.json").read_text())["settings"]

    plain = settings("plain")
    for name, value in (("overlap", 0.25), ("tile_batch", 3), ("threads", 1), ("device", "cpu")):
        changed = settings(name, f"--{name.replace('_', '-')}", value)
        assert changed == {**plain, name: value}
    batched, single = (nib.load(tmp_path / name / "pt_4.nii.gz").get_fdata() for name in ("tile_batch", "plain"))
    assert (batched != single).mean() < 1e-3
    assert not (tmp_path / "plain" / "previews").exists()
    settings("preview", "--preview")
    assert (tmp_path / "preview" / "previews" / "pt_4.png").stat().st_size > 10_000
    split = medseg("predict", run_folder, sample, "--split", "validation", "--out", tmp_path / "split", "--json")
    assert split.json["done"] == 2
    assert medseg("predict", run_folder, scan, "--split", "test", "--out", tmp_path / "x").exit_code == 2
    assert medseg("predict", run_folder, scan, "--device", "cuda:7", "--out", tmp_path / "x").exit_code == 2


def test_only_some_structures_are_kept_of_all_that_were_decided_among(
    tmp_path: Path, scans: Path, run_folder: Path, medseg
) -> None:
    scan, schema = scans / "pt_222.nii.gz", json.loads((run_folder / "bundle" / "bundle.json").read_text())["labels"]
    values = {structure["name"]: structure["value"] for structure in schema["structures"]}

    def predicted(name: str, *options: object) -> tuple[np.ndarray, dict]:
        answer = medseg("predict", run_folder, scan, "--out", tmp_path / name, *options)
        assert answer.exit_code == 0, answer.stderr
        (entry,) = json.loads((tmp_path / name / "manifest.json").read_text())["cases"]
        return np.asarray(nib.load(tmp_path / name / "pt_222.nii.gz").dataobj), entry

    whole, entry = predicted("all")
    found = sorted(values, key=lambda name: -np.count_nonzero(whole == values[name]))
    kept = [found[0], found[2], found[-1]]
    assert (whole == values[found[1]]).any(), "something has to go, or this would prove nothing"
    some, of_some = predicted("some", "--structures", f"{kept[1]}, {kept[0]}", "--structures", kept[2], "--preview")
    np.testing.assert_array_equal(some, np.where(np.isin(whole, [values[name] for name in kept]), whole, 0))
    for field in ("volume_ml", "mean_hu", "truncated"):
        assert of_some[field] == {name: entry[field][name] for name in kept}
    assert set(json.loads((tmp_path / "some" / "labels.json").read_text())) == {"background", *kept}
    assert predicted("some", "--structures", ",".join(kept))[1]["status"] == "skipped"
    wrong = medseg("predict", run_folder, scan, "--out", tmp_path / "none", "--structures", "Mandibel")
    assert wrong.exit_code == 2
    assert "did you mean 'mandible'" in " ".join(wrong.stderr.split())
    assert not (tmp_path / "none").exists()


def test_a_file_for_each_structure_is_written_checked_and_skipped_as_label_maps_are(
    tmp_path: Path, scans: Path, run_folder: Path, medseg
) -> None:
    out, scan = tmp_path / "out", scans / "pt_222.nii.gz"

    def predict(*options: object):
        return medseg("predict", run_folder, scan, "--out", out, "--one-file-each", "--json", *options)

    assert predict().json["done"] == 1
    schema = json.loads((out / "labels.json").read_text())
    schema.pop("background")
    label_map = nib.load(out / "pt_222.nii.gz")
    (entry,) = json.loads((out / "manifest.json").read_text())["cases"]
    assert entry["masks"] == {name: f"pt_222/{name}.nii.gz" for name in schema}
    assert sorted(path.name for path in (out / "pt_222").iterdir()) == sorted(f"{name}.nii.gz" for name in schema)
    for name, structure in schema.items():
        mask = nib.load(out / "pt_222" / f"{name}.nii.gz")
        np.testing.assert_array_equal(np.asarray(mask.dataobj), np.asarray(label_map.dataobj) == structure["value"])
        assert mask.get_data_dtype() == np.uint8
        for key in ("qform_code", "sform_code", "xyzt_units", "pixdim", "srow_x"):
            np.testing.assert_array_equal(mask.header[key], label_map.header[key])
    assert predict().json["skipped"] == 1
    mask = out / "pt_222" / "mandible.nii.gz"
    content = mask.read_bytes()
    mask.unlink()
    assert predict().json["done"] == 1
    assert mask.read_bytes() == content
    shutil.copy(out / "pt_222" / "larynx.nii.gz", mask)
    assert predict().json["errors"]["pt_222"]["code"] == "write.exists", "it is not overwritten unasked"
    assert predict("--overwrite").json["done"] == 1
    assert mask.read_bytes() == content
    few = medseg("predict", run_folder, scan, "--out", tmp_path / "few", "--one-file-each", "--structures", "larynx")
    assert few.exit_code == 0
    assert [path.name for path in (tmp_path / "few" / "pt_222").iterdir()] == ["larynx.nii.gz"]


def test_probabilities_say_what_the_labels_say(tmp_path: Path, scans: Path, run_folder: Path, medseg) -> None:
    out = tmp_path / "out"

    def predict(*options: object):
        return medseg(
            "predict", run_folder, scans / "pt_222.nii.gz", "--out", out, "--probabilities", "--json", *options
        )

    assert predict().json["done"] == 1
    (entry,) = json.loads((out / "manifest.json").read_text())["cases"]
    path, names = out / entry["probabilities"]["output"], entry["probabilities"]["volumes"]
    assert (path.name, names) == ("pt_222_probabilities.nii.gz", ["background", *entry["volume_ml"]])
    label_map, probabilities = nib.load(out / "pt_222.nii.gz"), nib.load(path)
    assert probabilities.shape == (*label_map.shape, len(names))
    np.testing.assert_array_equal(probabilities.affine, label_map.affine)
    for key in ("qform_code", "sform_code", "xyzt_units", "srow_x"):
        np.testing.assert_array_equal(probabilities.header[key], label_map.header[key])
    values = probabilities.get_fdata()
    np.testing.assert_allclose(values.sum(axis=-1), 1, atol=len(names) / 65535)
    best = np.sort(values, axis=-1)
    is_clear = best[..., -1] - best[..., -2] > 3 / 65535
    assert is_clear.mean() > 0.9
    schema = json.loads((out / "labels.json").read_text())
    by_channel = np.array([0, *(schema[name]["value"] for name in names[1:])])
    np.testing.assert_array_equal(by_channel[values.argmax(axis=-1)][is_clear], np.asarray(label_map.dataobj)[is_clear])
    assert predict().json["skipped"] == 1
    content = path.read_bytes()
    path.unlink()
    assert predict().json["done"] == 1
    assert path.read_bytes() == content
    path.write_bytes(b"altered by somebody")
    assert predict().json["errors"]["pt_222"]["code"] == "write.exists"
    assert predict("--overwrite").json["done"] == 1
    assert path.read_bytes() == content
    assert not list(out.glob(".medseg*"))
    few = medseg(
        "predict",
        run_folder,
        scans / "pt_222.nii.gz",
        "--out",
        tmp_path / "few",
        "--probabilities",
        "--structures",
        "larynx",
    )
    assert few.exit_code == 0
    kept = nib.load(tmp_path / "few" / path.name).get_fdata()
    np.testing.assert_array_equal(kept, values[..., [0, names.index("larynx")]])
    scores = medseg("evaluate", out, out, "--json")
    assert (scores.exit_code, set(scores.json["cases"])) == (0, {"pt_222"}), "probabilities are no label maps"


def test_probabilities_do_not_get_the_name_of_a_label_map(
    tmp_path: Path, scans: Path, run_folder: Path, medseg
) -> None:
    shutil.copy(scans / "pt_4.nii.gz", scans / "pt_4_probabilities.nii.gz")
    answer = medseg("predict", run_folder, scans, "--out", tmp_path / "out", "--probabilities")
    assert answer.exit_code == 2
    assert "would have one name" in " ".join(answer.stderr.split())
    assert not (tmp_path / "out").exists()


def test_masks_do_not_go_where_a_scan_is(tmp_path: Path, scans: Path, run_folder: Path, medseg) -> None:
    (tmp_path / "pt_4").mkdir()
    shutil.copy(scans / "pt_4.nii.gz", tmp_path / "pt_4")
    answer = medseg("predict", run_folder, tmp_path / "pt_4", "--out", tmp_path, "--one-file-each")
    assert answer.exit_code == 2
    assert "where its scan is" in " ".join(answer.stderr.split())
    assert [path.name for path in tmp_path.iterdir() if path.name != "scans"] == ["pt_4"]


def test_in_the_mirror_too_where_training_was(tmp_path: Path, scans: Path, run_folder: Path, medseg) -> None:
    assert json.loads((run_folder / "bundle" / "bundle.json").read_text())["mirror_axes"] == [0]
    scan = scans / "pt_222.nii.gz"
    for name, option in (("plain", "--no-tta"), ("mirrored", "--tta")):
        assert medseg("predict", run_folder, scan, "--out", tmp_path / name, option).exit_code == 0
        assert json.loads((tmp_path / name / "manifest.json").read_text())["settings"]["tta"] == (option == "--tta")
    plain, mirrored = (nib.load(tmp_path / name / "pt_222.nii.gz").get_fdata() for name in ("plain", "mirrored"))
    assert (plain != mirrored).any()
    shutil.copytree(run_folder / "bundle", tmp_path / "bundle")
    document = json.loads((tmp_path / "bundle" / "bundle.json").read_text())
    (tmp_path / "bundle" / "bundle.json").write_text(json.dumps({**document, "mirror_axes": []}))
    refused = medseg("predict", tmp_path / "bundle", scan, "--out", tmp_path / "refused", "--tta")
    assert refused.exit_code == 2
    assert "without --tta" in refused.stderr
    assert not (tmp_path / "refused").exists()


def test_two_inputs_of_one_name_are_refused_before_work(
    tmp_path: Path, scans: Path, sample: Path, run_folder: Path, medseg
) -> None:
    answer = medseg(
        "predict", run_folder, scans / "pt_4.nii.gz", sample / "images" / "pt_4.nii.gz", "--out", tmp_path / "out"
    )
    assert answer.exit_code == 2
    assert not list((tmp_path / "out").glob("*.nii.gz"))


def test_an_output_folder_that_cannot_be_made_is_told(tmp_path: Path, scans: Path, run_folder: Path, medseg) -> None:
    (tmp_path / "file").write_text("x")
    answer = medseg("predict", run_folder, scans / "pt_4.nii.gz", "--out", tmp_path / "file" / "out")
    assert answer.exit_code == 2
    assert "cannot write" in answer.stderr


def test_references_against_themselves_score_one(tmp_path: Path, sample: Path, medseg) -> None:
    out = tmp_path / "evaluation"
    answer = medseg("evaluate", sample / "labels", sample, "--split", "validation", "--out", out, "--json")
    assert answer.exit_code == 0
    assert answer.json["summary"]["mean"]["dice"] == {"mean": 1.0, "low": 1.0, "high": 1.0, "num_cases": 2}
    metrics = json.loads((out / "metrics.json").read_text())
    score = metrics["cases"]["pt_201"]["larynx"]
    perfect = {"dice": 1.0, "nsd": 1.0, "hd95_mm": 0.0, "volume_difference_ml": 0.0, "status": "scored"}
    assert {key: score[key] for key in perfect} == perfect
    assert len((out / "metrics.csv").read_text().splitlines()) == 1 + 2 * 7
    for name in ("pt_201", "pt_222", "scores"):
        assert (out / "figures" / f"{name}.png").stat().st_size > 10_000


def test_missing_and_foreign_predictions_count_as_empty(tmp_path: Path, sample: Path, medseg) -> None:
    (tmp_path / "pred").mkdir()
    image = nib.load(sample / "labels" / "pt_201.nii.gz")
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[1:], image.affine), tmp_path / "pred" / "pt_201.nii.gz")
    answer = medseg("evaluate", tmp_path / "pred", sample, "--split", "validation", "--json")
    assert answer.exit_code == 1, "no case has a usable prediction"
    assert answer.json["summary"]["mean"]["dice"]["mean"] == 0
    assert answer.json["cases"]["pt_222"]["brainstem"]["status"] == "missing"
    assert "not on the reference's grid" in answer.json["problems"]["pt_201"]
    shutil.copy(sample / "labels" / "pt_222.nii.gz", tmp_path / "pred")
    half = medseg("evaluate", tmp_path / "pred", sample, "--split", "validation", "--json")
    assert half.exit_code == 1
    assert half.json["summary"]["mean"]["dice"]["mean"] == pytest.approx(0.5)


def test_a_folder_of_label_maps_is_a_reference_too(tmp_path: Path, sample: Path, run_folder: Path, medseg) -> None:
    out = tmp_path / "pred"
    assert medseg("predict", run_folder, sample, "--split", "validation", "--out", out).exit_code == 0
    (tmp_path / "ref").mkdir()
    for name in ("pt_201", "pt_222"):
        shutil.copy(sample / "labels" / f"{name}.nii.gz", tmp_path / "ref")
    by_folder = medseg("evaluate", out, tmp_path / "ref", "--json").json["summary"]
    assert by_folder == medseg("evaluate", out, sample, "--split", "validation", "--json").json["summary"]


def test_a_code_that_nothing_allows_is_a_mistake(tmp_path: Path, scans: Path, run_folder: Path, medseg) -> None:
    answer = medseg("predict", run_folder, scans, "--out", tmp_path / "out", "--allow", "read.nonfinite,dicom.gap")
    assert answer.exit_code == 2
    assert "dicom.gap" in answer.stderr
    assert "dicom.missing_slice" in answer.stderr
    assert not (tmp_path / "out").exists()


def test_an_allowed_problem_is_dealt_with_and_told(tmp_path: Path, sample: Path, run_folder: Path, medseg) -> None:
    scan = nib.load(sample / "images" / "pt_222.nii.gz")
    values = scan.get_fdata(dtype=np.float32)
    values[0, 0, :2] = np.nan
    nib.save(nib.Nifti1Image(values, scan.affine), tmp_path / "hole.nii.gz")
    arguments = ("predict", run_folder, tmp_path / "hole.nii.gz", "--out", tmp_path / "out")
    assert medseg(*arguments).exit_code == 6
    assert medseg(*arguments, "--allow", "read.nonfinite").exit_code == 0
    (entry,) = json.loads((tmp_path / "out" / "manifest.json").read_text())["cases"]
    (note,) = entry["notes"]
    assert note["code"] == "read.nonfinite"
    assert "2 voxels" in note["message"]


@pytest.mark.parametrize("free_bytes", [0, 2**40])
def test_the_next_case_is_read_while_there_is_room(
    tmp_path: Path, sample: Path, monkeypatch: pytest.MonkeyPatch, free_bytes: int
) -> None:
    from medseg.inference.ensemble import open_ensemble
    from medseg.inference.runtimes.choice import Choice
    from medseg.io.case import chosen_cases
    from medseg.io.manifest import Manifest
    from pipelines import predict_cases

    monkeypatch.setattr(predict_cases, "free_memory_bytes", lambda: free_bytes)
    records = chosen_cases([sample / "images" / f"pt_{number}.nii.gz" for number in (222, 4)], None, 1)
    options, manifest = predict_cases.PredictOptions(tmp_path), Manifest.open(tmp_path, "", {})
    job = predict_cases.Job(open_ensemble("head-neck"), Choice("torch", "", "cpu", 1), manifest, options)
    begun: list[str] = []
    second_is_read = threading.Event()
    real = predict_cases.read

    def read(job: predict_cases.Job, record: CaseRecord) -> object:
        begun.append(record.id)
        if len(begun) == 2:
            second_is_read.set()
        return real(job, record)

    monkeypatch.setattr(predict_cases, "read", read)
    cases = predict_cases.read_ahead(job, records)
    first, _ = next(cases)
    assert second_is_read.wait(timeout=20 if free_bytes else 0.5) == bool(free_bytes)
    second, reading = next(cases)
    assert (first.id, second.id) == ("pt_222", "pt_4")
    found = reading.result()
    assert found is not None
    assert found.num_bytes > found.prepared.image.nbytes
    assert next(cases, None) is None


def test_each_failure_is_told_once(
    tmp_path: Path, sample: Path, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medseg.core.progress import Progress
    from pipelines import predict, predict_cases

    monkeypatch.setattr(predict_cases, "free_memory_bytes", lambda: 0)
    (tmp_path / "in").mkdir()
    for name in ("a", "c"):
        (tmp_path / "in" / f"{name}.nii.gz").write_bytes(b"damaged")
    shutil.copy(sample / "images" / "pt_222.nii.gz", tmp_path / "in" / "b.nii.gz")
    told: list[Progress] = []
    outcome = predict.run(run_folder, [tmp_path / "in"], predict_cases.PredictOptions(tmp_path / "out"), told.append)
    assert outcome.exit_code == 1
    messages = [event.message.split()[0] for event in told if "failed" in event.message]
    assert messages == ["a", "c"]


def test_the_order_of_files_changes_no_byte(tmp_path: Path, sample: Path, run_folder: Path, medseg) -> None:
    scans = sorted((sample / "images").glob("*.nii.gz"))[:3]
    for out, inputs in (("a", scans), ("b", scans[::-1])):
        assert medseg("predict", run_folder, *inputs, "--out", tmp_path / out, "--threads", 1).exit_code == 0
    for scan in scans:
        assert (tmp_path / "a" / scan.name).read_bytes() == (tmp_path / "b" / scan.name).read_bytes()
    seconds = json.loads((tmp_path / "a" / "manifest.json").read_text())["cases"][0]["seconds"]
    assert list(seconds) == ["read", "prepare", "network", "resolve", "write", "total"]
    assert seconds["total"] == pytest.approx(sum(seconds.values()) - seconds["total"], abs=1e-3)
