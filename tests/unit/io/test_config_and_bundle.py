from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from medseg.core.errors import CheckpointError, ConfigError, ResourceError, WriteError
from medseg.io.atomic import write_atomically, write_json_atomically, write_text_atomically
from medseg.io.bundle import read_bundle, write_bundle
from medseg.io.config import apply_overrides, read_yaml, write_yaml
from medseg.io.resources import configs_folder, sample_folder


def test_nothing_half_written_carries_the_final_name(tmp_path: Path) -> None:
    def broken(path: Path) -> None:
        path.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "a.txt", broken)
    assert list(tmp_path.iterdir()) == []
    write_text_atomically(tmp_path / "a.txt", "old")
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "a.txt", broken, overwrite=True)
    assert (tmp_path / "a.txt").read_text() == "old"
    with pytest.raises(WriteError) as raised:
        write_text_atomically(tmp_path / "a.txt", "new")
    assert raised.value.code == "write.exists"


def test_a_full_disk_and_a_folder_that_is_a_file_are_told(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="disk is full"):
        write_atomically(tmp_path / "a", lambda path: (_ for _ in ()).throw(OSError(28, os.strerror(28))))
    (tmp_path / "file").write_text("x")
    with pytest.raises(WriteError):
        write_text_atomically(tmp_path / "file" / "a", "x")


def test_json_has_no_numbers_that_are_not_finite(tmp_path: Path) -> None:
    write_json_atomically(tmp_path / "a.json", {"a": float("nan"), "b": [float("inf"), 1.5]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": None, "b": [None, 1.5]}


def test_overrides() -> None:
    values = {"a": {"b": 1, "c": 2}, "d": 3}
    changed = apply_overrides(values, ["a.b=[1, 2]", "e.f=null", "d=text"])
    assert changed == {"a": {"b": [1, 2], "c": 2}, "d": "text", "e": {"f": None}}
    assert values == {"a": {"b": 1, "c": 2}, "d": 3}
    for wrong in ("a", "=3", "a..b=1", "d.x=1", "a.b=[1"):
        with pytest.raises(ConfigError):
            apply_overrides(values, [wrong])


@pytest.mark.parametrize(
    ("text", "words"),
    [("a: 1\na: 2\n", "stands twice"), ("a: [1", "line"), ("- 1\n", "expected keys"), ("", "expected keys")],
)
def test_broken_yaml_is_told(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_yaml(tmp_path / "a.yaml")


def test_yaml_round_trip(tmp_path: Path) -> None:
    values = {"a": 1e-5, "b": None, "c": ["ä", 2], "d": {"e": True}}
    write_yaml(tmp_path / "a.yaml", values)
    assert read_yaml(tmp_path / "a.yaml") == values


def bundle(folder: Path) -> Path:
    write_bundle(
        folder,
        {"task": "t"},
        [{"w": np.arange(6, dtype=np.float32).reshape(2, 3)}],
        {"image": np.ones(3), "logits": np.zeros(2)},
    )
    return folder


def test_bundle_round_trip_from_bundle_and_run_folder(tmp_path: Path) -> None:
    first = read_bundle(bundle(tmp_path / "run" / "bundle"))
    np.testing.assert_array_equal(first.weights[0]["w"], np.arange(6, dtype=np.float32).reshape(2, 3))
    np.testing.assert_array_equal(first.probe["image"], np.ones(3))
    assert first.manifest["task"] == "t"
    assert read_bundle(tmp_path / "run").hash == first.hash == read_bundle(bundle(tmp_path / "run" / "bundle")).hash


@pytest.mark.parametrize("name", ["model.safetensors", "probe.npz", "bundle.json"])
@pytest.mark.parametrize("how", ["missing", "altered", "empty"])
def test_damaged_bundles_are_refused(tmp_path: Path, name: str, how: str) -> None:
    path = bundle(tmp_path / "bundle") / name
    content = path.read_bytes()
    path.unlink()
    if how != "missing":
        path.write_bytes(b"" if how == "empty" else content[:-2] + b"zz")
    with pytest.raises(CheckpointError):
        read_bundle(tmp_path / "bundle")


@pytest.mark.parametrize("change", [{"schema_version": 99}, {"files": {}}, {"files": {"../x": "0"}}])
def test_foreign_bundles_are_refused(tmp_path: Path, change: dict[str, object]) -> None:
    path = bundle(tmp_path / "bundle") / "bundle.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(CheckpointError):
        read_bundle(tmp_path / "bundle")


def test_resources_are_there() -> None:
    assert (sample_folder() / "dataset.json").is_file()
    assert (configs_folder() / "ct_segmentation" / "smoke.yaml").is_file()
