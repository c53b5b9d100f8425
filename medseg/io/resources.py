"""Where the starter configs and the sample dataset are: inside the wheel, or in a checkout."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

_FOLDER = Path(str(files("medseg.resources")))


def sample_folder() -> Path:
    """The sample dataset: eight real head-and-neck CT scans."""
    return _FOLDER / "sample"


def configs_folder() -> Path:
    """The starter configs: ``medseg/resources/configs`` in a wheel, ``configs`` at the top of a checkout."""
    installed = _FOLDER / "configs"
    return installed if installed.is_dir() else _FOLDER.parents[1] / "configs"
