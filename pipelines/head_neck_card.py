"""What the card of ``head-neck`` says, measured and told."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medseg.core.case import Dataset
from medseg.core.progress import Listener
from medseg.core.units import duration_text
from medseg.data.fingerprint import fingerprint
from medseg.inference.description import ModelDescription
from medseg.report.model_card import DataSource, ModelCard
from medseg.tasks.ct_segmentation.files import readable

SOURCE = DataSource(
    title="Head-and-neck radiotherapy planning CTs with clinical contours of organs at risk",
    origin="OpenKBP, the data of the 2020 AAPM Grand Challenge on knowledge-based planning (github.com/ababier/open-kbp), built from "
    "head-and-neck collections of The Cancer Imaging Archive.",
    licence="MIT, Copyright (c) 2021 Aaron Babier. The weights are under medseg's own licence, Apache-2.0.",
    citation="A. Babier, B. Zhang, R. Mahmood, K. L. Moore, T. G. Purdie, A. L. McNiven, T. C. Y. Chan. OpenKBP: The open-access "
    "knowledge-based planning grand challenge and dataset. Medical Physics 48(9), 5549-5561, 2021. doi:10.1002/mp.14845",
    limits=(
        "Adults with head-and-neck cancer, in treatment position; tumours and dental metal are among them.",
        "In-plane resolution is that of the challenge, about 4 mm, not of a scanner.",
        "One clinical contour each, by different hospitals and hands; where a contour ends (cord, esophagus) follows no one rule.",
        "Outside the body every voxel is −1000 HU: couches and masks were taken away.",
    ),
)

NOT_FOR = (
    "Treatment or diagnosis. It is no medical device. Whoever uses a contour looks at every slice of it first.",
    "Planning a dose on its contours as they are: several structures are a few voxels wide on the network's grid.",
    "MR, cone-beam CT or PET; children; scans of other regions, or in which the head or the neck is missing.",
    "Finding out whether a structure is there: after surgery it may draw an organ that was taken out.",
)

ABOUT_SCORES = (
    "Each case by the network of the fold that never saw it: five networks, each trained for a shorter time on four fifths of "
    "the patients. The bundled one saw all of them, so that no figure of its own on these patients would be honest.",
    "Patients of the same hospitals and the same coarse resolution; other scanners and protocols are not in these figures.",
)


def card_of(
    name: str,
    description: ModelDescription,
    num_weights: int,
    dataset: Dataset,
    whole: Path,
    folds: Path | None,
    listener: Listener,
) -> ModelCard:
    """The card of a trained model.

    Args:
        name: Of the bundled model.
        description: What its bundle says.
        num_weights: Numbers in its network.
        dataset: It was trained on; the scans are measured.
        whole: The run on all cases.
        folds: The cross-validation; None while there is none.
        listener: Hears of the measuring.
    """
    cases = [record for record in dataset.cases if record.id in description.plan.training_cases]
    report, validated = read_report(whole), None if folds is None else read_report(folds)
    return ModelCard(
        name=name,
        summary=f"Contours {len(description.labels.names)} organs at risk on head-and-neck CTs.",
        source=SOURCE,
        cases=fingerprint(readable(cases, dataset, "measuring the scans", listener), dataset.labels),
        description=description,
        num_weights=num_weights,
        training=training_sentences(report, validated),
        scores=None if validated is None else validated["cross_validation"],
        about_scores=ABOUT_SCORES,
        not_for=NOT_FOR,
        command="make head-neck DATA=hn_oar",
    )


def training_sentences(whole: Mapping[str, Any], folds: Mapping[str, Any] | None) -> list[str]:
    """How the networks were trained.

    Args:
        whole: The report of the run on all cases.
        folds: The report of the cross-validation.
    """
    took = duration_text(sum(whole["seconds"].values()))
    told = [
        f"On all cases: {whole['num_steps']} steps, {took} with all that belongs to it; the weights of the end are kept."
    ]
    if folds is not None:
        longest = duration_text(max(sum(one["seconds"].values()) for one in folds["folds"]))
        told.append(
            f"For the figures: {len(folds['folds'])} folds of {folds['folds'][0]['num_steps']} steps, each at most {longest}."
        )
    return told


def read_report(run: Path) -> dict[str, Any]:
    """What ``report.json`` of a run holds."""
    report: dict[str, Any] = json.loads((run / "report.json").read_text(encoding="utf-8"))
    return report
