from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.core.errors import CheckpointError, ConfigError
from medseg.io import bundle as bundle_room
from medseg.io.bundle import read_bundle, write_bundle
from medseg.io.config import apply_overrides, read_yaml, write_yaml
from medseg.io.dataset import labels_of
from medseg.io.label_tables import read_label_schema, write_label_tables

LABELS = {
    "background": 0,
    "Kidney left": {"value": 7, "color": "#ff8000", "tolerance_mm": 3.5, "code": "18639004"},
    "Kidney right": 300,
    'the "odd" one': 2,
}


def test_label_tables_say_the_same_in_three_languages(tmp_path: Path) -> None:
    schema = labels_of(LABELS)
    write_label_tables(tmp_path, schema)
    assert read_label_schema(tmp_path) == schema
    slicer = [line.split() for line in (tmp_path / "labels.ctbl").read_text().splitlines() if line[0] != "#"]
    assert all(len(row) == 6 for row in slicer)
    assert [int(row[0]) for row in slicer] == [0, 7, 300, 2]
    assert slicer[1] == ["7", "Kidney_left", "255", "128", "0", "255"]
    snap = [shlex.split(line) for line in (tmp_path / "labels.txt").read_text().splitlines() if line[0] != "#"]
    assert snap[0] == ["0", "0", "0", "0", "0", "0", "0", "Clear Label"]
    assert snap[1] == ["7", "255", "128", "0", "1", "1", "1", "Kidney left"]
    assert [int(row[0]) for row in snap] == [0, 7, 300, 2]


@pytest.mark.parametrize("text", [None, "", "[]", "{", '{"A": "x"}'])
def test_a_folder_without_good_labels_is_told(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "labels.json").write_text(text)
    with pytest.raises(ConfigError):
        read_label_schema(tmp_path)


words = st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]), max_size=8)
scalars = st.integers(-(10**6), 10**6) | st.floats(allow_nan=False) | st.booleans() | st.none() | words
documents = st.dictionaries(words, st.recursive(scalars, st.lists, max_leaves=5))


@settings(max_examples=50)
@given(values=documents)
def test_yaml_gives_back_what_was_written(tmp_path_factory: pytest.TempPathFactory, values: dict[str, object]) -> None:
    path = tmp_path_factory.getbasetemp() / "round_trip.yaml"
    write_yaml(path, values)
    assert read_yaml(path) == values


@pytest.mark.parametrize("text", ["1e-3", "1E+5", "-2.5e3", ".5e1", "3e4"])
def test_numbers_without_a_point_are_numbers(text: str) -> None:
    assert apply_overrides({}, [f"a={text}"]) == {"a": float(text)}
    assert apply_overrides({}, [f"a='{text}'"]) == {"a": text}


@pytest.mark.parametrize(
    ("text", "line"), [("a: 1\nb:\n\tc: 2\n", 3), ("a:\n  b: 1\n  b: 2\n", 2), ("a: 1\nb: [1, 2\n", 3), ("a: *x\n", 1)]
)
def test_yaml_mistakes_name_their_line(tmp_path: Path, text: str, line: int) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError, match=rf"a\.yaml .* line {line}\b"):
        read_yaml(tmp_path / "a.yaml")


@pytest.mark.parametrize("content", [b"a: 2001-02-30", b"a: \xff", b"a: !!python/object/apply:os.getcwd []", b"[1]: 2"])
def test_odd_yaml_is_told_and_runs_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=re.escape("a.yaml")):
        read_yaml(tmp_path / "a.yaml")


def test_overrides_open_a_section_that_is_null() -> None:
    assert apply_overrides({"a": None}, ["a.b.c=1"]) == {"a": {"b": {"c": 1}}}


def make(folder: Path, weight: float = 1.0) -> Path:
    weights = {
        "half": np.full((2, 2), weight, np.float16),
        "single": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
        "count": np.array(3, dtype=np.int64),
    }
    write_bundle(folder, {"task": "t"}, [weights], {"image": np.ones(2, np.float32), "logits": np.zeros(2, np.float32)})
    return folder


def test_weights_keep_type_and_shape(tmp_path: Path) -> None:
    (weights,) = read_bundle(make(tmp_path / "b")).weights
    assert (weights["half"].dtype, weights["single"].dtype, weights["count"].shape) == (np.float16, np.float32, ())
    np.testing.assert_array_equal(weights["single"], np.arange(6).reshape(2, 3))


def test_the_same_bundle_has_the_same_bytes(tmp_path: Path) -> None:
    first, second = make(tmp_path / "a"), make(tmp_path / "b")
    names = sorted(path.name for path in first.iterdir())
    assert names == ["bundle.json", "model.safetensors", "probe.npz"]
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)


def test_a_bundle_that_cannot_be_finished_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = read_bundle(make(tmp_path / "b")).hash

    def broken(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bundle_room, "write_json_atomically", broken)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "b", weight=2.0)
    assert read_bundle(tmp_path / "b").hash == old
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    monkeypatch.undo()
    assert read_bundle(make(tmp_path / "b", weight=2.0)).hash != old
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_files_that_a_bundle_does_not_list_are_refused(tmp_path: Path) -> None:
    folder = make(tmp_path / "b")
    (folder / ".DS_Store").write_bytes(b"x")
    assert read_bundle(folder).manifest["task"] == "t"
    (folder / "extra.py").write_text("print()")
    with pytest.raises(CheckpointError, match=r"extra\.py"):
        read_bundle(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "probe.npz"])
@pytest.mark.parametrize("content", [b"junk", b"PK\x03\x04junk", b"\x80\x04\x95pickle", b"\x93NUMPY\x01\x00"])
def test_a_file_with_the_right_hash_and_wrong_content_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    folder = make(tmp_path / "b")
    (folder / name).write_bytes(content)
    manifest = json.loads((folder / "bundle.json").read_text())
    manifest["files"][name] = bundle_room._sha256(content)
    (folder / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError):
        read_bundle(folder)


def test_pickled_arrays_in_a_probe_are_refused(tmp_path: Path) -> None:
    folder = make(tmp_path / "b")
    np.savez(folder / "probe.npz", image=np.array([{"a": 1}], dtype=object))
    manifest = json.loads((folder / "bundle.json").read_text())
    manifest["files"]["probe.npz"] = bundle_room._sha256((folder / "probe.npz").read_bytes())
    (folder / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError):
        read_bundle(folder)


def test_a_file_and_an_empty_folder_are_no_bundles(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path, tmp_path / "file", tmp_path / "absent"):
        with pytest.raises(CheckpointError, match="neither a bundle nor"):
            read_bundle(path)
