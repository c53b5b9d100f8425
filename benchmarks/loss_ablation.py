"""Losses on real data: the same network, patches and steps, only the loss differs, three paired seeds.

On ``hn_oar`` (seven organs, partly annotated) seeds differ in weights and patches and share the 21 validation cases. On
``sarcoma_petct`` (one tumour, 12 patients) each seed also leaves out another three patients. Intervals are BCa over cases
of the mean over seeds. "Dice + focal minus BCE" stands beside the +.07 that a published comparison found for it.

Run: ``.venv/bin/python benchmarks/loss_ablation.py DATA --work DIR [--jobs 2]`` with DATA the folder that holds both
datasets. The default number of steps is about 8 minutes a run on two cores; 36 runs. What is finished is not repeated.
"""

from __future__ import annotations

import json
from pathlib import Path

from paired_runs import Dice, Run, arguments, difference_rows, finish_all, fold_view, markdown, mean_rows, shown

from medseg.io.dataset import read_dataset

LOSSES = ("cross_entropy", "bce", "dice", "dice_bce", "dice_ce", "dice_focal")

REFERENCE = "dice_ce"
"""nnU-Net's; the others are compared with it."""

CONFIG_OF = {"hn_oar": "head_neck_unet", "sarcoma_petct": "sarcoma_petct"}

NUM_SARCOMA_FOLDS = 4

PUBLISHED = "+0.07"
"""Gain of Dice + focal over BCE alone in a published comparison; not confirmed by short runs before."""


def main() -> None:
    """Train, score, print."""
    parser = arguments(__doc__ or "", steps=1800, seeds=3)
    parser.add_argument("--datasets", nargs="+", choices=tuple(CONFIG_OF), default=list(CONFIG_OF))
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=list(LOSSES))
    options = parser.parse_args()
    runs = {
        (dataset, loss, seed): Run(
            name=f"{dataset}-{loss}-seed{seed}-{options.steps}steps",
            pair=f"{dataset}-seed{seed}",
            config=CONFIG_OF[dataset],
            data=view(dataset, options.data / dataset, options.work, seed),
            overrides=(f"loss={{kind: {loss}}}", f"trainer.seed={seed}", *options.overrides),
        )
        for dataset in options.datasets
        for seed in range(options.seeds)
        for loss in options.losses
    }
    scores = finish_all(list(runs.values()), options.work, options.steps, options.jobs)
    texts, results = [], {}
    for dataset in options.datasets:
        of_loss = {
            loss: [scores[runs[dataset, loss, seed].name] for seed in range(options.seeds)] for loss in options.losses
        }
        names = read_dataset(options.data / dataset).labels.names
        texts.append(report(dataset, of_loss, names))
        results[dataset] = {loss: mean_rows(repetitions, names) for loss, repetitions in of_loss.items()}
    (options.work / "loss_ablation.json").write_text(json.dumps(results, indent=1))
    (options.work / "loss_ablation.md").write_text("\n\n".join(texts) + "\n")
    print("\n\n".join(texts))


def view(dataset: str, data: Path, work: Path, seed: int) -> Path:
    """The dataset of a seed."""
    if dataset == "hn_oar":
        return data
    return fold_view(data, work / "data" / f"{dataset}-fold{seed}", seed % NUM_SARCOMA_FOLDS, NUM_SARCOMA_FOLDS)


def report(dataset: str, of_loss: dict[str, list[Dice]], names: tuple[str, ...]) -> str:
    """The table of one dataset."""
    rows = []
    for loss, repetitions in of_loss.items():
        seeds = ", ".join(f"{mean_rows([scores], names)['mean']['mean']:.3f}" for scores in repetitions)
        against = (
            shown(difference_rows(repetitions, of_loss[REFERENCE], names)["mean"], signed=True)
            if REFERENCE in of_loss
            else ""
        )
        rows.append([loss, shown(mean_rows(repetitions, names)["mean"]), seeds, "" if loss == REFERENCE else against])
    text = f"### {dataset}\n\n" + markdown(["loss", "mean Dice", "seeds", f"minus {REFERENCE}"], rows)
    if {"dice_focal", "bce"} <= set(of_loss):
        found = difference_rows(of_loss["dice_focal"], of_loss["bce"], names)["mean"]
        text += f"\n\nDice + focal minus BCE: {shown(found, signed=True)}; published: {PUBLISHED}"
    return text


if __name__ == "__main__":
    main()
