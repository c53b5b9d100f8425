"""A model card: what a bundled model was made from, how good it is, what it knows, and what it must not be used for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medseg.core.version import VERSION
from medseg.data.fingerprint import Fingerprint
from medseg.inference.description import ModelDescription
from medseg.report.tables import NOTHING, interval, number


@dataclass(frozen=True)
class DataSource:
    """Where the cases come from that a model was trained on.

    Attributes:
        title: What they are, in a few words.
        origin: Who made them and where they are, in a sentence.
        licence: Of the data.
        citation: How to cite them.
        limits: What the data don't hold, or hold wrongly, in sentences.
    """

    title: str
    origin: str
    licence: str
    citation: str
    limits: Sequence[str]


@dataclass(frozen=True, eq=False)
class ModelCard:
    """All that a card says.

    Attributes:
        name: Of the bundled model.
        summary: What it does, in a sentence.
        source: Of its training cases.
        cases: Its training cases, measured.
        description: What the bundle says of itself.
        num_weights: Numbers in the network.
        training: How it was trained, in sentences.
        scores: Summary of the cross-validation by structure, and ``mean``; None while there is none.
        about_scores: How these figures came about, in sentences.
        not_for: What it must not be used for, in sentences.
        command: That makes it again.
    """

    name: str
    summary: str
    source: DataSource
    cases: Fingerprint
    description: ModelDescription
    num_weights: int
    training: Sequence[str]
    scores: Mapping[str, Any] | None
    about_scores: Sequence[str]
    not_for: Sequence[str]
    command: str


def card_markdown(card: ModelCard) -> str:
    """The card as it lies in the bundle."""
    parts = [
        f"# {card.name}\n\n{card.summary}\n\n```\nmedseg predict {card.name} SCAN --out predictions\n```",
        "## What it must not be used for\n\n" + _list(card.not_for),
        "## How good it is\n\n" + _scores(card),
        "## What it knows\n\n" + _known(card),
        "## Data\n\n" + _data(card),
        f"## How it was made\n\n{_list(card.training)}\n\nMade with medseg {VERSION} by\n\n```\n{card.command}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _scores(card: ModelCard) -> str:
    if card.scores is None:
        return "Not cross-validated yet: nothing is known of unseen patients."
    lines = [
        "| structure | Dice | 95 % interval | NSD | HD95 [mm] | cases | missing |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, entry in card.scores.items():
        dice, nsd, hd95 = (entry[metric] for metric in ("dice", "nsd", "hd95_mm"))
        cells = [number(dice["mean"], 3), interval(dice, 3), number(nsd["mean"], 3), number(hd95["mean"], 1)]
        cells += [str(dice["num_cases"]), str(entry["num_missing"])]
        mark = "**" if name == "mean" else ""
        lines.append(" | ".join([f"| {mark}{name}{mark}", *cells]) + " |")
    tolerances = sorted({structure.tolerance_mm for structure in card.description.labels.structures})
    told = [
        f"NSD: surface Dice at {' or '.join(f'{one:g}' for one in tolerances)} mm. HD95: where the structure was found. "
        "Intervals: BCa bootstrap over patients.",
        *card.about_scores,
    ]
    return "\n".join(lines) + "\n\n" + _list(told)


def _known(card: ModelCard) -> str:
    plan, cases = card.description.plan, card.cases
    spacings = np.array(cases.spacings_mm)
    extents = spacings * np.array(cases.shapes)
    window = plan.patch_ijk * np.array(plan.spacing_ijk_mm)
    rows = [
        ("modality", ", ".join(card.description.modalities)),
        ("structures", ", ".join(card.description.labels.names)),
        ("spacing of the training scans, R × A × S", f"{_range(spacings, 1)} mm"),
        ("field of view of the training scans", f"{_range(extents, 0)} mm"),
        ("spacing that the network works on", f"{_times(plan.spacing_ijk_mm, 2)} mm: nothing finer is seen"),
        ("field of view of the network", f"{_times(window, 0)} mm at once"),
        ("network", f"{card.description.network.kind}, {card.num_weights:,} weights"),
    ]
    return "| | |\n|---|---|\n" + "\n".join(f"| {what} | {value} |" for what, value in rows)


def _data(card: ModelCard) -> str:
    source, num_cases = card.source, len(card.cases.shapes)
    annotated = ", ".join(f"{name} in {count}" for name, count in card.cases.num_annotated.items())
    return (
        f"{source.title}, {num_cases} cases. {source.origin}\n\nAnnotated: {annotated}. What nobody annotated in a case taught "
        f"nothing there.\n\n{_list(source.limits)}\n\nLicence of the data: {source.licence}\n\nPlease cite: {source.citation}"
    )


def _range(values: np.ndarray, digits: int) -> str:
    """Median of each axis, and from the smallest to the largest."""
    low, middle, high = (
        _times(part, digits) for part in (values.min(axis=0), np.median(values, axis=0), values.max(axis=0))
    )
    return f"{middle} ({low} to {high})"


def _times(values: Sequence[float] | np.ndarray, digits: int) -> str:
    return " × ".join(f"{float(value):.{digits}f}" for value in values)


def _list(sentences: Sequence[str]) -> str:
    return "\n".join(f"- {sentence}" for sentence in sentences) or NOTHING
