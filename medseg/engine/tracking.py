"""The run folder and what is logged into it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg.core.config import ConfigBase
from medseg.core.errors import ConfigError
from medseg.io.atomic import write_text_atomically
from medseg.io.config import read_yaml, write_yaml


@dataclass(frozen=True)
class RunFolder:
    """Where the files of one run are."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved config."""
        return self.path / "config.yaml"

    @property
    def plan(self) -> Path:
        """The frozen plan."""
        return self.path / "plan.json"

    @property
    def log(self) -> Path:
        """One JSON object a step and validation."""
        return self.path / "log.jsonl"

    @property
    def last(self) -> Path:
        """The latest checkpoint."""
        return self.path / "checkpoints" / "last.safetensors"

    @property
    def best(self) -> Path:
        """The checkpoint with the best validation."""
        return self.path / "checkpoints" / "best.safetensors"

    @property
    def bundle(self) -> Path:
        """The trained model, ready to use."""
        return self.path / "bundle"

    @property
    def figures(self) -> Path:
        """Pictures."""
        return self.path / "figures"

    @property
    def report(self) -> Path:
        """What came out, for programs."""
        return self.path / "report.json"


def open_run(run: RunFolder, config: ConfigBase, *, resume: bool) -> None:
    """Make a run folder, or make sure that an old one fits.

    Raises:
        ConfigError: The folder holds a run and ``resume`` is off, or the run's config is another.
    """
    values = config.model_dump(mode="json")
    if run.config.exists():
        if not resume:
            raise ConfigError(f"{run.path} holds a run already: give --resume to go on, or another --out")
        if read_yaml(run.config) != values:
            raise ConfigError(f"{run.path} was started with another config: resume with {run.config}")
        return
    run.path.mkdir(parents=True, exist_ok=True)
    write_yaml(run.config, values)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a log; a last line cut by a kill is left out."""
    if not path.exists():
        return []
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entries.append(json.loads(line))
        except ValueError:
            break
    return entries


class Tracker:
    """Writes ``log.jsonl`` and TensorBoard scalars.

    Args:
        run: The run folder.
        start_step: Entries after this step, left by a killed run, are dropped.
    """

    def __init__(self, run: RunFolder, start_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # a second of import

        kept = [entry for entry in read_log(run.log) if entry["step"] <= start_step]
        write_text_atomically(run.log, "".join(json.dumps(entry) + "\n" for entry in kept), overwrite=True)
        self._log = run.log.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(run.path / "tensorboard"), purge_step=start_step)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *_: object) -> None:
        self._log.close()
        self._board.close()

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Log one entry; numbers (also one level down) become TensorBoard curves."""
        self._log.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        self._log.flush()
        for name, value in values.items():
            if isinstance(value, Mapping):
                numbers = {f"{name}/{key}": number for key, number in value.items()}
            else:
                numbers = {name: value}
            for key, number in numbers.items():
                if isinstance(number, int | float):
                    self._board.add_scalar(f"{kind}/{key}", number, step)
