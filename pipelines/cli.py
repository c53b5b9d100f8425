"""The command line. Commands import what they need when they run, so that ``--help`` answers at once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from medseg.core.errors import ConfigError
from medseg.core.version import VERSION
from pipelines.answer import answer
from pipelines.options import (
    Allow,
    Budget,
    Device,
    Fold,
    FormatName,
    ImportFold,
    Json,
    Memory,
    Quiet,
    RuntimeOption,
    Set,
    Split,
    Structures,
    SurfaceName,
    Verbose,
    codes_of,
    names_of,
)
from pipelines.outcome import Outcome

GROUP: dict[str, Any] = {
    "no_args_is_help": True,
    "pretty_exceptions_enable": False,
    "rich_markup_mode": None,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}
"""How a group of commands behaves."""

app = typer.Typer(
    name="medseg",
    help="Train 3D segmentation networks on CT scans, predict with them, and measure how good that is.",
    **GROUP,
)
import_app = typer.Typer(name="import", help="Bundles from models that other programs trained.", **GROUP)
app.add_typer(import_app)


@app.callback(invoke_without_command=True)
def main(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    """Train 3D segmentation networks on CT scans, predict with them, and measure how good that is."""
    if version:
        typer.echo(f"medseg {VERSION}")
        raise typer.Exit


def _display(quiet: bool) -> Any:
    from pipelines.progress import ProgressDisplay

    return ProgressDisplay(quiet)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the run, the predictions and the scores.")] = Path("demo"),
    budget: Budget = None,
    json_: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """The main job on the bundled real scans: train briefly, predict unseen scans, evaluate, report.

    Example: medseg demo --out demo
    """

    def job() -> Outcome:
        from pipelines import demo as pipeline

        return pipeline.run(out, budget or pipeline.TRAINING_S, _display(quiet))

    answer(job, as_json=json_, verbose=verbose)


@app.command()
def tasks(json_: Json = False, verbose: Verbose = False) -> None:
    """List the installed tasks (name, package, version, whether each is available) and the models that ship with medseg.

    Example: medseg tasks --json
    """

    def job() -> Outcome:
        from medseg.core.plugins import installed_tasks
        from medseg.io.resources import bundled_models

        found, models = installed_tasks(), [model.summary() for model in bundled_models()]
        lines = [f"{task.name:<20}{task.package} {task.version:<10}{task.status:<12}{task.detail}" for task in found]
        lines += ["no task is installed"] * (not found)
        for model in models:
            kind = f"{model['task']}, {' + '.join(model['modality'])}, {model['size_bytes'] / 2**20:.1f} MB"
            lines.append(f"bundled model {model['name']} ({kind}): {', '.join(model['structures'])}")
        return Outcome(0, {"tasks": [vars(task) for task in found], "models": models}, "\n".join(lines))

    answer(job, as_json=json_, verbose=verbose)


@app.command()
def init(
    task: Annotated[str, typer.Argument(help="Name of a task; medseg tasks lists them.")],
    out: Annotated[Path | None, typer.Option(help="File to write; without it the config is printed.")] = None,
    verbose: Verbose = False,
) -> None:
    """Write a complete, commented starter config for a task.

    Example: medseg init ct_segmentation --out my_run.yaml
    """

    def job() -> Outcome:
        from medseg.core.plugins import find_task, resolve_reference
        from medseg.io.atomic import write_text_atomically
        from medseg.io.starter import commented_yaml

        text = commented_yaml(resolve_reference(find_task(task).config_type)())
        if out is None:
            return Outcome(0, {}, text.rstrip())
        if out.exists():
            raise ConfigError(f"{out} is there already: give another --out", code="write.exists")
        write_text_atomically(out, text)
        return Outcome(0, {}, f"wrote {out}; train with: medseg train {out} --data DATASET")

    answer(job, as_json=False, verbose=verbose)


@app.command()
def check(
    dataset: Annotated[Path, typer.Argument(help="Folder of a dataset, its dataset.json, or a folder of images.")],
    task: Annotated[str | None, typer.Option(help="Name of the task; default: the one that knows the data.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; default: one for each core.")] = None,
    allow: Allow = None,
    out: Annotated[Path | None, typer.Option(help="Folder for findings.json and a page of thumbnails.")] = None,
    json_: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Find the defects of a dataset before training: file, defect, and what to do. Exit code 1 if any is an error.

    Example: medseg check hn_oar --out findings
    """

    def job() -> Outcome:
        from pipelines import check as pipeline

        options = pipeline.CheckOptions(task=task, workers=workers, allow=codes_of(allow), out=out)
        return pipeline.run(dataset, options, _display(quiet))

    answer(job, as_json=json_, verbose=verbose)


@app.command()
def convert(
    dataset: Annotated[Path, typer.Argument(help="Folder of a dataset, or its dataset.json.")],
    to: Annotated[FormatName, typer.Option(help="Form to write.")],
    out: Annotated[Path, typer.Option(help="Folder for the converted dataset.")],
    json_: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write a dataset in another form; what that form cannot hold stands in medseg.json beside it.

    Example: medseg convert hn_oar --to nnunet --out Dataset001_HeadNeck
    """

    def job() -> Outcome:
        from pipelines import convert as pipeline

        return pipeline.run(dataset, pipeline.ConvertOptions(to=to.value, out=out), _display(quiet))

    answer(job, as_json=json_, verbose=verbose)


@app.command()
def plan(
    dataset: Annotated[Path, typer.Argument(help="Folder of a dataset, or its dataset.json.")],
    out: Annotated[Path | None, typer.Option(help="File for the plan; medseg train --plan reads it.")] = None,
    device: Annotated[
        str,
        typer.Option(help="auto, cpu, cuda or cuda:N; or a GPU that is not here: gpu-8g, gpu-12g, gpu-24g, gpu-80g."),
    ] = "auto",
    memory: Memory = None,
    budget: Budget = None,
    explain: Annotated[bool, typer.Option("--explain", help="Show the plans that were weighed.")] = False,
    explain_memory: Annotated[bool, typer.Option("--explain-memory", help="Show what takes how much memory.")] = False,
    set_: Set = None,
    json_: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Fingerprint a dataset and plan for it: spacing, window, patch, batch, network, schedule, and why.

    With --budget this machine is probed first, and what the config leaves null is chosen for the time and memory at hand.

    Example: medseg plan hn_oar --budget 20m --memory 8G --out plan.json
    """

    def job() -> Outcome:
        from pipelines import plan as pipeline

        options = pipeline.PlanOptions(
            out=out, device=device, budget_s=budget, memory_bytes=memory, explain=explain, explain_memory=explain_memory,
            overrides=set_ or (),
        )  # fmt: skip
        return pipeline.run(dataset, options, _display(quiet))

    answer(job, as_json=json_, verbose=verbose)


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="YAML of one complete run; medseg init writes one.")],
    data: Annotated[Path | None, typer.Option(help="Folder of a dataset, or its dataset.json.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; default runs/NAME-DATE.")] = None,
    budget: Budget = None,
    memory: Memory = None,
    plan: Annotated[Path | None, typer.Option(help="A plan written by medseg plan; default: plan now.")] = None,
    from_: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="BUNDLE", help="Train this bundle, run or bundled model further; labels may differ."
        ),
    ] = None,
    fold: Fold = None,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="Refuse arithmetic that does not repeat.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out, exactly.")] = False,
    set_: Set = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check config and dataset, train nothing.")] = False,
    json_: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train a network; the run folder holds the bundle, checkpoints, log and figures.

    Ctrl-C and SIGTERM leave a checkpoint; --resume goes on from it. With --fold each, all folds are trained in turn, each
    case is contoured by the network that never saw it, and the bundle is the ensemble.

    Example: medseg train configs/ct_segmentation/head_neck_unet.yaml --data hn_oar --out run --budget 20m
    """

    def job() -> Outcome:
        from pipelines import train as pipeline

        options = pipeline.TrainOptions(
            data=data, out=out, budget_s=budget, memory_bytes=memory, plan=plan, start_from=from_, fold=fold,
            deterministic=deterministic, resume=resume, overrides=set_ or (), dry_run=dry_run,
        )  # fmt: skip
        return pipeline.run(config, options, _display(quiet))

    answer(job, as_json=json_, verbose=verbose)


@app.command()
def predict(
    bundle: Annotated[
        str,
        typer.Argument(
            help="Bundle folder, run folder, or a model that medseg tasks lists; several joined by commas are averaged."
        ),
    ],
    inputs: Annotated[
        list[Path], typer.Argument(metavar="INPUT...", help="Volume files, DICOM series, folders of them, datasets.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the label maps.")],
    split: Split = None,
    structures: Structures = None,
    device: Device = "auto",
    runtime: Annotated[
        RuntimeOption, typer.Option(help="What runs the network; auto: the fastest one here, tried once per machine.")
    ] = RuntimeOption.auto,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: one for each core.")] = None,
    tile_batch: Annotated[int, typer.Option(min=1, help="Windows given to the network at once.")] = 1,
    overlap: Annotated[float, typer.Option(min=0.0, max=0.95, help="Overlap of neighbouring windows.")] = 0.5,
    skip_air: Annotated[
        bool,
        typer.Option(
            "--skip-air/--no-skip-air",
            help="Leave out the windows of a CT that hold nothing of the body; off by itself where the model labels air.",
        ),
    ] = True,
    tta: Annotated[
        bool, typer.Option("--tta/--no-tta", help="Look in the mirror too: twice the time or more.")
    ] = False,
    one_file_each: Annotated[bool, typer.Option("--one-file-each", help="Also NAME/STRUCTURE.nii.gz: masks.")] = False,
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Also NAME_probabilities.nii.gz.")] = False,
    allow: Allow = None,
    preview: Annotated[bool, typer.Option("--preview", help="Also draw the contours on each scan.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Predict again what is there already.")] = False,
    json_: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Label scans: one label map each, on exactly the scan's grid.

    A scan that fails is named in manifest.json, and the others go on. Run again, what is done is skipped.

    Example: medseg predict run scans/ --out predictions
    """

    def job() -> Outcome:
        from pipelines import predict as pipeline
        from pipelines.predict_cases import PredictOptions

        options = PredictOptions(
            out=out, split=split.value if split else None, structures=names_of(structures), device=device,
            runtime=runtime.value, threads=threads, tile_batch=tile_batch, overlap=overlap, skip_air=skip_air, tta=tta,
            one_file_each=one_file_each, probabilities=probabilities, allow=codes_of(allow), preview=preview,
            overwrite=overwrite,
        )  # fmt: skip
        return pipeline.run(bundle, inputs, options, _display(quiet))

    answer(job, as_json=json_, verbose=verbose)


@app.command()
def bench(
    bundle: Annotated[
        str,
        typer.Argument(
            help="Bundle folder, run folder, or a model that medseg tasks lists; several joined by commas are averaged."
        ),
    ],
    scan: Annotated[Path, typer.Argument(metavar="INPUT", help="A volume file or a DICOM series.")],
    threads: Annotated[
        list[int] | None, typer.Option(min=1, help="CPU threads; may be repeated. Default: one, and one for each core.")
    ] = None,
    tile_batch: Annotated[
        list[int] | None, typer.Option(min=1, help="Windows at once; may be repeated. Default: 1 and 2.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Predictions that the median is taken of.")] = 3,
    json_: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Measure how fast a model predicts here: each runtime, number of threads and tile batch, with memory and agreement.

    Example: medseg bench head-neck scan.nii.gz
    """

    def job() -> Outcome:
        from pipelines import bench as pipeline

        options = pipeline.BenchOptions(threads or (), tile_batch or (1, 2), repeats)
        return pipeline.run(bundle, scan, options, _display(quiet))

    answer(job, as_json=json_, verbose=verbose)


@app.command()
def evaluate(
    predictions: Annotated[Path, typer.Argument(help="Folder of label maps, named by case.")],
    references: Annotated[Path, typer.Argument(help="A dataset, or a folder of label maps of the same names.")],
    task: Annotated[str | None, typer.Option(help="Name of the task; default: the one that knows the data.")] = None,
    split: Split = None,
    surface: Annotated[
        SurfaceName, typer.Option(help="Surface elements as in DeepMind's surface-distance, or border voxels.")
    ] = SurfaceName.elements,
    labels: Annotated[Path | None, typer.Option(help="labels.json or dataset.json that names the structures.")] = None,
    compare: Annotated[
        Path | None, typer.Option(help="Predictions of another model for the same cases: a paired comparison.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for metrics, figures and report.html.")] = None,
    json_: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Compare predictions with references: Dice, surface Dice, HD95, volumes, with intervals and pictures.

    With --compare OTHER: the differences between two models, with intervals and a sign test.

    Example: medseg evaluate predictions hn_oar --split validation --out evaluation
    """

    def job() -> Outcome:
        from pipelines import evaluate as pipeline

        options = pipeline.EvaluateOptions(
            split=split.value if split else None, out=out, surface=surface.value, labels=labels, compare=compare,
            task=task,
        )  # fmt: skip
        return pipeline.run(predictions, references, options, _display(quiet))

    answer(job, as_json=json_, verbose=verbose)


@import_app.command("nnunet")
def import_nnunet(
    model_dir: Annotated[
        Path, typer.Argument(help="nnU-Net v2's folder of a trained model, DatasetXXX_NAME/TRAINER__PLANS__3d_fullres.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the bundle.")],
    fold: ImportFold = None,
    json_: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """A trained model of nnU-Net v2 becomes a bundle that predicts what nnU-Net predicts; its folds become an ensemble.

    Nothing in the checkpoints is executed. 3D configurations of a single stage: 2D networks and cascades are refused.

    Example: medseg import nnunet nnUNet_results/Dataset001_HeadNeck/nnUNetTrainer__nnUNetPlans__3d_fullres --out head-neck
    """

    def job() -> Outcome:
        from pipelines import import_model as pipeline

        options = pipeline.ImportOptions(out=out, folds=tuple(fold or ()))
        return pipeline.run(model_dir, options, _display(quiet))

    answer(job, as_json=json_, verbose=verbose)


@app.command()
def doctor(json_: Json = False, verbose: Verbose = False) -> None:
    """Show what this machine can do: versions, processors, memory, disks, devices.

    Example: medseg doctor --json
    """

    def job() -> Outcome:
        from pipelines import doctor as pipeline

        return pipeline.run()

    answer(job, as_json=json_, verbose=verbose)


if __name__ == "__main__":
    sys.exit(app())
