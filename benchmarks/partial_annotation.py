"""What partial annotation is worth: 70 % of all annotations hidden, and the rest used in two ways.

``masked`` says of each case what is annotated in it (medseg's way: what nobody looked for teaches nothing). ``absent`` takes
the same label maps as other programs do: what is not contoured is background. Hidden are pairs of case and structure, drawn
by seed among the training cases of ``hn_oar``; cases that keep none are left out of both. The validation cases keep
everything.

Run: ``.venv/bin/python benchmarks/partial_annotation.py DATA --work DIR [--jobs 2]``. What is finished is not repeated.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from paired_runs import Run, arguments, difference_rows, finish_all, markdown, mean_rows, shown

from medseg.core.case import CaseRecord, Dataset
from medseg.core.volume import LabelMap
from medseg.io.dataset import read_dataset
from medseg.io.dataset_native import case_entry, native_document
from medseg.io.nifti import write_label_map
from medseg.io.volume import read_label_map

WAYS = ("masked", "absent")


def main() -> None:
    """Train, score, print."""
    parser = arguments(__doc__ or "", steps=1800, seeds=2)
    parser.add_argument("--hidden", type=float, default=0.7, help="part of all annotations")
    options = parser.parse_args()
    dataset = read_dataset(options.data / "hn_oar")
    kept = {seed: draw_kept(dataset, options.hidden, seed) for seed in range(options.seeds)}
    runs = {
        (way, seed): Run(
            name=f"{way}-hidden{options.hidden:g}-seed{seed}-{options.steps}steps",
            pair=f"seed{seed}",
            config="head_neck_unet",
            data=write_hidden(dataset, kept[seed], way, options.work / "data" / f"seed{seed}-{options.hidden:g}"),
            overrides=(f"trainer.seed={seed}", *options.overrides),
        )
        for seed in kept
        for way in WAYS
    }
    scores = finish_all(list(runs.values()), options.work, options.steps, options.jobs)
    masked, absent = ([scores[runs[way, seed].name] for seed in kept] for way in WAYS)
    names = dataset.labels.names
    gains = difference_rows(masked, absent, names)
    means = [mean_rows(repetitions, names) for repetitions in (masked, absent)]
    rows = [[name, *(shown(mean[name]) for mean in means), shown(gains[name], signed=True)] for name in gains]
    counts = [sum(map(len, pairs.values())) for pairs in kept.values()]
    each = ", ".join(
        f"{difference_rows([a], [b], names)['mean']['mean']:+.3f}" for a, b in zip(masked, absent, strict=True)
    )
    text = markdown(["structure", "masked", "absent", "gain"], rows)
    text += f"\n\nAnnotations kept by seed: {counts}. Gain of the mean by seed: {each}."
    (options.work / "partial_annotation.json").write_text(
        json.dumps({"means": dict(zip(WAYS, means, strict=True)), "gain": gains}, indent=1)
    )
    (options.work / "partial_annotation.md").write_text(text + "\n")
    print(text)


def draw_kept(dataset: Dataset, hidden: float, seed: int) -> dict[str, tuple[str, ...]]:
    """By training case, the structures whose annotation stays; cases without any are not in it."""
    names = dataset.labels.names
    training = [record for record in dataset.cases if record.split == "train"]
    pairs = [
        (record.id, name) for record in training for name in (names if record.annotated is None else record.annotated)
    ]
    num_kept = len(pairs) - round(hidden * len(pairs))
    chosen = np.random.default_rng(seed).permutation(len(pairs))[:num_kept]
    kept: dict[str, list[str]] = {}
    for case, name in (pairs[index] for index in sorted(chosen)):
        kept.setdefault(case, []).append(name)
    return {case: tuple(found) for case, found in kept.items()}


def write_hidden(dataset: Dataset, kept: dict[str, tuple[str, ...]], way: str, folder: Path) -> Path:
    """A dataset whose training cases hold only what was kept; ``absent`` claims that all the rest was looked for."""
    own = folder / way
    cases = []
    for record in dataset.cases:
        if record.id in kept:
            annotated = kept[record.id] if way == "masked" else None
            cases.append(replace(record, label=hide(record, dataset, kept[record.id], folder), annotated=annotated))
        elif record.split == "validation":
            cases.append(record)
    own.mkdir(parents=True, exist_ok=True)
    document = native_document(dataset, [case_entry(record, own) for record in cases])
    (own / "dataset.json").write_text(json.dumps(document, indent=1))
    return own


def hide(record: CaseRecord, dataset: Dataset, names: tuple[str, ...], folder: Path) -> Path:
    """The case's label map with these structures only; both ways read the same file."""
    path = folder / "labels" / f"{record.id}.nii.gz"
    if not path.exists():
        assert record.label is not None
        label = read_label_map(record.label)
        values = [structure.value for structure in dataset.labels.structures if structure.name in names]
        array = np.where(np.isin(label.array, values), label.array, 0).astype(label.array.dtype)
        write_label_map(path, LabelMap(array, label.geometry, label.record))
    return path


if __name__ == "__main__":
    main()
