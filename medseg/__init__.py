"""medseg: from scans to contours, and from contours to trained networks.

The names below are the public ones; ``docs/python.md`` shows them at work. Importing medseg takes no time: each name brings
what it needs when it is first used, and torch comes when something is trained or predicted.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from medseg.core.errors import MedsegError
from medseg.core.units import duration_s, size_bytes
from medseg.core.version import VERSION as __version__
from pipelines.outcome import Outcome

if TYPE_CHECKING:
    from medseg.core.geometry import Geometry as Geometry
    from medseg.core.labels import LabelSchema as LabelSchema
    from medseg.core.volume import LabelMap as LabelMap
    from medseg.core.volume import Volume as Volume
    from medseg.inference.predictor import Predictor as Predictor
    from medseg.io.nifti import write_label_map as write_label_map
    from medseg.io.volume import read_label_map as read_label_map
    from medseg.io.volume import read_volume as read_volume

__all__ = [
    "Geometry",
    "LabelMap",
    "LabelSchema",
    "MedsegError",
    "Outcome",
    "Predictor",
    "Volume",
    "__version__",
    "evaluate",
    "read_label_map",
    "read_volume",
    "train",
    "write_label_map",
]

_HOMES = {
    "Geometry": "medseg.core.geometry",
    "LabelSchema": "medseg.core.labels",
    "LabelMap": "medseg.core.volume",
    "Volume": "medseg.core.volume",
    "Predictor": "medseg.inference.predictor",
    "read_volume": "medseg.io.volume",
    "read_label_map": "medseg.io.volume",
    "write_label_map": "medseg.io.nifti",
}


def __getattr__(name: str) -> Any:
    """Public names that need more than the standard library are imported when they are first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'medseg' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """What an editor or a notebook offers after ``medseg.``: the public names, not what this file imports."""
    return sorted(__all__)


def train(
    config: str | Path,
    *,
    data: str | Path | None = None,
    out: str | Path | None = None,
    budget: str | None = None,
    memory: str | None = None,
    plan: str | Path | None = None,
    start_from: str | Path | None = None,
    fold: int | Literal["each", "none"] | None = None,
    deterministic: bool = False,
    resume: bool = False,
    overrides: tuple[str, ...] | list[str] = (),
) -> Outcome:
    """Train a network, as ``medseg train`` does.

    Args:
        config: YAML of one complete run.
        data: A dataset's folder, or its ``dataset.json``.
        out: Run folder; default ``runs/NAME-DATE``.
        budget: Time for all of it: ``90s``, ``20m``, ``2h``.
        memory: Most that training may take: ``8G``.
        plan: A plan written by ``medseg plan``.
        start_from: A bundle, a run or a bundled model that is trained further, as ``--from`` takes it.
        fold: Validate on this fold, on ``"each"`` in turn, or on ``"none"``.
        deterministic: Refuse arithmetic that does not repeat.
        resume: Go on with the run in ``out``, exactly.
        overrides: ``"a.b=c"``, as ``--set`` takes them.

    Returns:
        ``result`` is what the command prints with ``--json``; ``exit_code`` is 1 where a case was left out.

    Raises:
        MedsegError: As the command would end with another exit code than 0 or 1.
    """
    from pipelines import train as pipeline

    options = pipeline.TrainOptions(
        data=_path(data),
        out=_path(out),
        budget_s=None if budget is None else duration_s(budget),
        memory_bytes=None if memory is None else size_bytes(memory),
        plan=_path(plan),
        start_from=None if start_from is None else str(start_from),
        fold=fold,
        deterministic=deterministic,
        resume=resume,
        overrides=overrides,
    )
    return pipeline.run(Path(config), options)


def evaluate(
    predictions: str | Path,
    references: str | Path,
    *,
    split: Literal["train", "validation", "test"] | None = None,
    out: str | Path | None = None,
    surface: Literal["elements", "borders"] = "elements",
    labels: str | Path | None = None,
    compare: str | Path | None = None,
) -> Outcome:
    """Compare predictions with references, as ``medseg evaluate`` does.

    Args:
        predictions: Folder of label maps, named by case.
        references: A dataset, or a folder of label maps of the same names.
        split: Only the cases of this split of a dataset.
        out: Folder for ``metrics.json``, ``metrics.csv``, figures and ``report.html``; nothing is written without.
        surface: Surface elements as in DeepMind's surface-distance, or border voxels.
        labels: ``labels.json`` or ``dataset.json`` that names the structures.
        compare: Predictions of another model for the same cases.

    Returns:
        ``result`` is what ``metrics.json`` holds, and ``problems`` by case; ``exit_code`` is 1 where there are some.

    Raises:
        MedsegError: As the command would end with another exit code than 0 or 1.
    """
    from pipelines import evaluate as pipeline

    options = pipeline.EvaluateOptions(
        split=split, out=_path(out), surface=surface, labels=_path(labels), compare=_path(compare)
    )
    return pipeline.run(Path(predictions), Path(references), options)


def _path(value: str | Path | None) -> Path | None:
    return None if value is None else Path(value)
