"""What ships with medseg: the sample dataset, starter configs, trained models; inside the wheel, or in a checkout."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

_FOLDER = Path(str(files("medseg.resources")))


def sample_folder() -> Path:
    """The sample dataset: eight real head-and-neck CT scans."""
    return _FOLDER / "sample"


def configs_folder() -> Path:
    """The starter configs: ``medseg/resources/configs`` in a wheel, ``configs`` at the top of a checkout."""
    installed = _FOLDER / "configs"
    return installed if installed.is_dir() else _FOLDER.parents[1] / "configs"


def bundles_folder() -> Path:
    """The trained models that ship with medseg; there may be none."""
    return _FOLDER / "bundles"


@dataclass(frozen=True)
class BundledModel:
    """A trained model that ships with medseg: ``medseg predict NAME SCAN`` works without training.

    Attributes:
        name: That commands take; of its folder.
        folder: Its bundle.
    """

    name: str
    folder: Path

    def summary(self) -> dict[str, Any]:
        """What ``medseg tasks`` says of it: task, structures, modality of each channel, size of its files [bytes]."""
        manifest = json.loads((self.folder / "bundle.json").read_text(encoding="utf-8"))
        return {
            "name": self.name,
            "task": manifest["task"],
            "structures": [structure["name"] for structure in manifest["labels"]["structures"]],
            "modality": list(manifest["modalities"]),
            "size_bytes": folder_bytes(self.folder),
        }


def folder_bytes(folder: Path) -> int:
    """Size of all files in a folder and below it [bytes]."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def bundled_models() -> tuple[BundledModel, ...]:
    """The trained models that ship with medseg, by name."""
    found = sorted(bundles_folder().glob("*/bundle.json"))
    return tuple(BundledModel(path.parent.name, path.parent) for path in found)
