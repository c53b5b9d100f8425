"""The demo: train briefly on the bundled real scans, contour two unseen ones, and show how good that is."""

from __future__ import annotations

from pathlib import Path

from medseg.core.progress import Listener, Progress, silent
from medseg.io.resources import bundled_models, configs_folder, sample_folder
from pipelines import evaluate, predict, predict_cases, train
from pipelines.outcome import Outcome

BUNDLED = "head-neck"
"""Shown beside the briefly trained network, where it ships."""

SEEN = (
    f"The bundled model {BUNDLED} was trained on these two patients too, so its figures here are those of a model that knows them; "
    "its card has those of patients it never saw."
)

TRAINING_S = 330.0
"""Budget of the demo's training [s]: with reading, predicting and pictures it stays within a coffee break."""


def run(out: Path, budget_s: float = TRAINING_S, listener: Listener = silent) -> Outcome:
    """Train, predict, evaluate.

    Args:
        out: A folder for all of it; a finished training in it is used again.
        budget_s: Wall clock of training [s].
        listener: Hears of the progress.
    """
    sample = sample_folder()
    listener(Progress("demo", 0, None, message=f"8 real head-and-neck CT scans of {sample}: 6 train, 2 are unseen"))
    run_folder, predictions, results = out / "run", out / "predictions", out / "evaluation"
    if not (run_folder / "bundle").exists():
        options = train.TrainOptions(
            data=sample, out=run_folder, budget_s=budget_s, resume=(run_folder / "config.yaml").exists()
        )
        train.run(configs_folder() / "ct_segmentation" / "head_neck_unet.yaml", options, listener)
    predicted = predict.run(
        run_folder, [sample], predict_cases.PredictOptions(out=predictions, split="validation"), listener
    )
    other = predict_bundled(out / BUNDLED, sample, listener)
    compared = evaluate.EvaluateOptions(split="validation", out=results, compare=other)
    evaluated = evaluate.run(predictions, sample, compared, listener)
    text = f"{evaluated.text}\n" + (f"{SEEN}\n" if other else "")
    text += f"pictures in {results / 'figures'} and {run_folder / 'figures'}"
    result = {"run": str(run_folder), "predictions": str(predictions), "evaluation": str(results)}
    return Outcome(
        max(predicted.exit_code, evaluated.exit_code), {**result, "summary": evaluated.result["summary"]}, text
    )


def predict_bundled(out: Path, sample: Path, listener: Listener) -> Path | None:
    """Contours of the bundled model on the same scans; None where it does not ship."""
    if BUNDLED not in {model.name for model in bundled_models()}:
        return None
    predict.run(BUNDLED, [sample], predict_cases.PredictOptions(out=out, split="validation"), listener)
    return out
