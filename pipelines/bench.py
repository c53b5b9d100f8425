"""How fast a model predicts here: runtimes x threads x tile batch, with the time, the memory and the agreement of each."""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import numpy as np

from medseg.core.case import CaseRecord, Dataset
from medseg.core.errors import ConfigError, MedsegError
from medseg.core.processors import compute_threads
from medseg.core.progress import Listener, Progress, silent
from medseg.inference.ensemble import Ensemble, open_ensemble
from medseg.inference.predictor import Predictor
from medseg.inference.runtimes.catalogue import RuntimeName, installed_runtimes
from medseg.inference.runtimes.choice import choose_runtime
from medseg.io.case import chosen_cases, read_case
from medseg.io.manifest import peak_memory_bytes
from pipelines.outcome import Outcome, exit_code_of


@dataclass(frozen=True)
class BenchOptions:
    """Fields are the command's options."""

    threads: Sequence[int] = ()
    tile_batches: Sequence[int] = (1, 2)
    repeats: int = 3


@dataclass(frozen=True)
class Setting:
    """What is varied."""

    runtime: RuntimeName
    threads: int
    tile_batch: int


@dataclass(frozen=True)
class Row:
    """What one setting gave, in a process of its own.

    Attributes:
        runtime: By name.
        threads: CPU threads.
        tile_batch: Windows given to the network at once.
        load_s: Of choosing the runtime and loading the network; making its graph too, where that is not there yet [s].
        first_s: Of the first prediction, from the scan in memory to its labels [s].
        network_s: Of the network in a prediction, median [s].
        total_s: Of a prediction, median [s].
        peak_memory_bytes: Of the process.
        agreement: Part of the labelled voxels, in either label map, that are labelled as by the first setting that worked.
        error: Why there is nothing; then all figures are None.
    """

    runtime: str
    threads: int
    tile_batch: int
    load_s: float | None = None
    first_s: float | None = None
    network_s: float | None = None
    total_s: float | None = None
    peak_memory_bytes: int | None = None
    agreement: float | None = None
    error: str | None = None


def run(bundle: str | Path, scan: Path, options: BenchOptions, listener: Listener = silent) -> Outcome:
    """Predict one scan in every way.

    Args:
        bundle: Bundle folder, run folder, or the name of a bundled model; several joined by commas are an ensemble.
        scan: A volume, or the folder of one.
        options: Of the command line.
        listener: Hears of each setting.

    Raises:
        ConfigError: The input is more than one case.
    """
    ensemble = open_ensemble(bundle)
    records = chosen_cases([scan], None, len(ensemble.description.modalities))
    if len(records) != 1:
        raise ConfigError(f"expected one scan, found {len(records)} in {scan}: name one of them")
    threads = options.threads or sorted({1, compute_threads()})
    settings = [Setting(*values) for values in product(installed_runtimes(), threads, options.tile_batches)]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="medseg-bench-") as folder:
        for done, setting in enumerate(settings):
            listener(Progress("settings", done, len(settings)))
            rows.append(_apart(bundle, records[0], setting, options.repeats, Path(folder)))
    listener(Progress("settings", len(settings), len(settings)))
    result = {"scan": scan.name, "rows": [asdict(row) for row in rows]}
    num_failed = sum(row.error is not None for row in rows)
    return Outcome(exit_code_of(num_failed, len(rows)), result, "\n".join(_table(rows)))


def _apart(bundle: str | Path, record: CaseRecord, setting: Setting, repeats: int, folder: Path) -> Row:
    """One setting in a fresh process: its memory is its own, and so are its threads."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(_measure, bundle, record, setting, repeats, folder).result()
        except BrokenProcessPool:
            return Row(**asdict(setting), error="its process was killed: most likely there was too little memory")


def _measure(bundle: str | Path, record: CaseRecord, setting: Setting, repeats: int, folder: Path) -> Row:
    ensemble = open_ensemble(bundle)
    try:
        case = read_case(record, _dataset(ensemble, record))
        began = time.perf_counter()
        choice = choose_runtime(ensemble, setting.runtime, "cpu", setting.threads)
        predictor = Predictor.of(ensemble, choice, tile_batch=setting.tile_batch)
        marks, network_s = [time.perf_counter()], []
        for _ in range(1 + repeats):
            prediction = predictor.predict_case(case)
            marks.append(time.perf_counter())
            network_s.append(prediction.seconds["network"])
    except (MedsegError, MemoryError, RuntimeError) as error:
        return Row(**asdict(setting), error=str(error) or type(error).__name__)
    took_s = np.diff(marks).tolist()
    return Row(
        **asdict(setting),
        load_s=round(marks[0] - began, 3),
        first_s=round(took_s[0], 3),
        network_s=round(statistics.median(network_s[1:]), 3),
        total_s=round(statistics.median(took_s[1:]), 3),
        peak_memory_bytes=peak_memory_bytes(),
        agreement=_agreement(prediction.label_map.array, folder / "first.npy"),
    )


def _dataset(ensemble: Ensemble, record: CaseRecord) -> Dataset:
    description = ensemble.description
    return Dataset(description.name, description.modalities, description.labels, (record,), Path("bench"))


def _agreement(labels: np.ndarray, first: Path) -> float:
    """With the label map of the first setting, which is kept."""
    if not first.exists():
        np.save(first, labels)
    other = np.load(first)
    labelled = (labels != 0) | (other != 0)
    return float((labels == other)[labelled].mean()) if labelled.any() else 1.0


def _table(rows: Sequence[Row]) -> list[str]:
    lines = [
        f"{'runtime':<10}{'threads':>8}{'tiles':>7}{'load s':>9}{'first s':>9}{'network s':>11}{'total s':>9}{'MiB':>7}{'agreement':>11}"
    ]
    for row in rows:
        start = f"{row.runtime:<10}{row.threads:>8}{row.tile_batch:>7}"
        if row.error is not None or row.peak_memory_bytes is None:
            lines.append(f"{start}  {row.error}")
            continue
        lines.append(
            f"{start}{row.load_s:>9.2f}{row.first_s:>9.2f}{row.network_s:>11.2f}{row.total_s:>9.2f}"
            f"{row.peak_memory_bytes / 2**20:>7.0f}{row.agreement:>11.6f}"
        )
    return lines
