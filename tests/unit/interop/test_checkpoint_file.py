"""Checkpoints are read without executing anything in them."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medseg.core.errors import CheckpointError
from medseg.interop.checkpoint_file import NEW_MODULE, OLD_MODULE, load_checkpoint


class Trap:
    """Leaves a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def with_module(path: Path, old: str, new: str) -> Path:
    """The same file with another module's name in its pickle, as another version of NumPy writes it."""
    changed = path.with_name("changed.pth")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(changed, "w", zipfile.ZIP_STORED) as target:
        for entry in source.infolist():
            data = source.read(entry)
            if entry.filename.endswith("data.pkl"):
                assert old.encode() in data
                data = data.replace(f"c{old}\n".encode(), f"c{new}\n".encode())
            target.writestr(entry, data)
    return changed


SCALARS = {
    "float": np.float64(0.7), "half": np.float16(0.5), "single": np.float32(0.25), "integer": np.int64(-3),
    "byte": np.uint8(7), "truth": np.bool_(True), "not a number": np.float64(np.nan),
}  # fmt: skip


@pytest.mark.parametrize("module", [OLD_MODULE, NEW_MODULE])
def test_numpys_scalars_are_admitted_under_old_and_new_names(tmp_path: Path, module: str) -> None:
    path = with_module(saved(tmp_path / "c.pth", SCALARS), NEW_MODULE, module)
    found = load_checkpoint(path)
    assert found.keys() == SCALARS.keys()
    for name, value in SCALARS.items():
        assert type(found[name]) is type(value)
        np.testing.assert_array_equal(found[name], value)


def test_tensors_and_plain_values_come_as_they_were(tmp_path: Path) -> None:
    tensor = torch.randn(3, 4)
    content = {"weights": {"a": tensor}, "epoch": 3, "lrs": [0.1], "axes": (0, 1), "device": torch.device("cuda")}
    found = load_checkpoint(saved(tmp_path / "c.pth", content))
    assert torch.equal(found["weights"]["a"], tensor)
    assert {key: found[key] for key in ("epoch", "lrs", "axes", "device")} == {
        key: content[key] for key in ("epoch", "lrs", "axes", "device")
    }


@pytest.mark.parametrize("place", ["alone", "among the logging"])
def test_a_hostile_pickle_is_refused_and_does_nothing(tmp_path: Path, place: str) -> None:
    mark = tmp_path / "mark"
    trap = Trap(mark)
    path = saved(tmp_path / "c.pth", trap if place == "alone" else {"weights": {}, "logging": [trap]})
    with pytest.raises(CheckpointError, match="nothing in it was executed") as raised:
        load_checkpoint(path)
    assert not mark.exists()
    assert raised.value.exit_code == 4
    with path.open("rb"):
        torch.load(path, weights_only=False)
    assert mark.exists(), "the trap works"


@pytest.mark.parametrize(
    "content",
    [
        {"x": np.arange(3)},  # arrays are no scalars
        {"x": np.dtype(object)},
        {"x": np.dtype([("a", "f4")])},
        {"x": np.array(None, object)},
        {"x": Path("a")},
        {"x": print},
        {"x": eval},
        [1, 2],
        {1: 2},
    ],
    ids=str,
)
def test_anything_else_is_refused(tmp_path: Path, content: Any) -> None:
    with pytest.raises(CheckpointError):
        load_checkpoint(saved(tmp_path / "c.pth", content))


def test_damage_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "c.pth", {"a": torch.zeros(1000)})
    data = path.read_bytes()
    for damaged in (b"", b"x", data[: len(data) // 2], pickle.dumps({"a": 1})):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"c\.pth"):
            load_checkpoint(path)
