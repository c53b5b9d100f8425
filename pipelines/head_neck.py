"""The bundled model ``head-neck``, from the dataset to bundle and card: ``make head-neck DATA=hn_oar``.

Every part that is done is left as it is, and a training that was cut goes on: after a kill at any moment, run it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from medseg.core.case import Dataset
from medseg.core.errors import Interrupted, WriteError
from medseg.core.progress import Listener, Progress, silent
from medseg.inference.description import describe
from medseg.io.atomic import write_json_atomically
from medseg.io.bundle import read_bundle, stored_weights, write_bundle
from medseg.io.dataset import read_dataset
from medseg.io.dataset_native import case_entry, native_document
from medseg.io.exclusive import exclusive
from medseg.io.resources import bundles_folder, configs_folder, folder_bytes
from medseg.report.model_card import card_markdown
from pipelines import train
from pipelines.answer import answer
from pipelines.head_neck_card import card_of
from pipelines.options import Quiet, Set, Verbose, parse_duration
from pipelines.outcome import Outcome
from pipelines.progress import ProgressDisplay

NAME = "head-neck"

TOLERANCE_MM = 3.0
"""Of NSD: the scans have voxels of 4 mm, so that 2 mm would measure the rounding of contours."""

MAX_BYTES = 8 * 2**20
"""Of the whole bundle, weights and graph: it lies in the repository and in the wheel."""


@dataclass(frozen=True)
class HeadNeckOptions:
    """Fields are the command's options."""

    out: Path
    budget_s: float | None
    fold_budget_s: float | None
    bundles: Path
    overrides: Sequence[str] = ()


def run(data: Path, options: HeadNeckOptions, listener: Listener = silent) -> Outcome:
    """Train on all cases and on five folds of them, and write the bundle with its card.

    Args:
        data: The dataset.
        options: Of the command line.
        listener: Hears of the progress.
    """
    out = options.out
    with exclusive(out):
        dataset = prepare_dataset(data, out)
        whole, folds = out / "all", out / "folds"
        train_on(dataset.source, whole, "none", options.budget_s, options, listener)
        publish(out / NAME, whole, None, dataset, listener)  # can be used already; too large is told before the folds
        train_on(dataset.source, folds, "each", options.fold_budget_s, options, listener)
        return publish(options.bundles / NAME, whole, folds, dataset, listener)


def prepare_dataset(data: Path, out: Path) -> Dataset:
    """The dataset as this model is trained and scored on it: with the tolerance of its NSD, its files where they are."""
    dataset = read_dataset(data)
    structures = tuple(replace(structure, tolerance_mm=TOLERANCE_MM) for structure in dataset.labels.structures)
    tolerant = replace(dataset, labels=replace(dataset.labels, structures=structures))
    source = out / "dataset.json"
    entries = [case_entry(record, out) for record in dataset.cases]
    write_json_atomically(source, native_document(tolerant, entries), overwrite=True)
    return read_dataset(source)


def train_on(
    data: Path,
    folder: Path,
    fold: Literal["each", "none"],
    budget_s: float | None,
    options: HeadNeckOptions,
    listener: Listener,
) -> None:
    """Train, go on with a training that was cut, or leave one that is finished.

    One that was begun goes on with the config it was begun with, whatever the options and the config file say now.
    """
    if (folder / "report.json").exists():
        listener(Progress("training", 0, None, message=f"{folder} is finished already"))
        return
    begun = folder / "config.yaml"
    config = configs_folder() / "ct_segmentation" / "head_neck.yaml"
    chosen = train.TrainOptions(data=data, out=folder, budget_s=budget_s, fold=fold, overrides=options.overrides)
    if begun.exists():
        listener(Progress("training", 0, None, message=f"going on with {folder} as {begun} says"))
        config, chosen = begun, train.TrainOptions(out=folder, resume=True)
    try:
        train.run(config, chosen, listener)
    except Interrupted:
        raise Interrupted(f"stopped in {folder} with a checkpoint; the same command goes on") from None


def publish(folder: Path, whole: Path, folds: Path | None, dataset: Dataset, listener: Listener) -> Outcome:
    """Write the bundle: the network of all cases, and the figures and component rules of the cross-validation.

    Raises:
        WriteError: It is too large for the repository.
    """
    from medseg.inference.runtimes.graph import make_graph
    from medseg.inference.runtimes.torch import make_probe

    trained = read_bundle(whole)
    members = [stored_weights(weights, "float16") for weights in trained.weights]
    rules = {} if folds is None else describe(read_bundle(folds)).components
    description = describe(trained).model_copy(update={"name": NAME, "components": rules})
    num_weights = sum(tensor.size for tensor in members[0].values())
    card = card_of(NAME, description, num_weights, dataset, whole, folds, listener)
    manifest = {**description.model_dump(mode="json"), "metrics": {"cross_validation": card.scores}}
    probe, graphs = make_probe(description, members), [make_graph(description, weights) for weights in members]
    write_bundle(folder, manifest, members, probe, storage="float16", card=card_markdown(card), graphs=graphs)
    return outcome(folder, card.scores)


def outcome(folder: Path, scores: Any) -> Outcome:
    """What was written, and how large it is."""
    size = folder_bytes(folder)
    text = f"{folder}: {size / 2**20:.1f} MB"
    if size > MAX_BYTES:
        raise WriteError(
            f"{text}, and {MAX_BYTES / 2**20:.0f} MB are allowed: set fewer network.features", code="write.size"
        )
    if scores is not None:
        text += f", cross-validated mean Dice {scores['mean']['dice']['mean']:.3f}"
    return Outcome(0, {"bundle": str(folder), "size_bytes": size, "scores": scores}, text)


def main(
    data: Annotated[Path, typer.Argument(help="The dataset: 121 head-and-neck CTs of OpenKBP in native form.")],
    out: Annotated[Path, typer.Option(help="Folder for the runs; one that was cut goes on.")] = Path("runs/head-neck"),
    budget: Annotated[str, typer.Option(help="Time for the run on all cases.")] = "6h",
    fold_budget: Annotated[str, typer.Option(help="Time for each of five folds.")] = "1h",
    bundles: Annotated[Path | None, typer.Option(help="Where the bundle goes; default: into the package.")] = None,
    set_: Set = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Make the bundled model head-neck: one run on all cases, five folds for its figures, bundle and card.

    Interrupted at any moment, the same command goes on.
    """

    def job() -> Outcome:
        budgets = parse_duration(budget), parse_duration(fold_budget)
        return run(
            data, HeadNeckOptions(out, *budgets, bundles or bundles_folder(), set_ or ()), ProgressDisplay(quiet)
        )

    answer(job, as_json=False, verbose=verbose)


if __name__ == "__main__":
    typer.run(main)
