"""A finished training as one HTML page: what was planned and why, how it went, and how good the network is.

It carries its pictures and opens without a network. Everything that comes from names of files, cases and structures is
escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from medseg.core.units import duration_text
from medseg.core.version import VERSION
from medseg.data.plan import Plan
from medseg.io.atomic import write_text_atomically
from medseg.report.curves import Entries
from medseg.report.evaluation import CURVES, FIRST_BATCHES, SCORES, Evaluation
from medseg.report.html import bullets, page_head, picture, table
from medseg.report.page import cases_section, definitions_section, summary_section, worst_section
from medseg.report.plans import plan_section
from medseg.report.tables import interval, number

NUM_WORST = 3
"""Cases shown with their picture: drawing one takes about as long as predicting it."""

ABOUT_RUN = (
    "<p>The bundle on validation cases, on the grid of their files: what <code>medseg predict</code> and <code>medseg "
    "evaluate</code> give. Where the best of several validations was kept, it was chosen on some of these cases, so that new "
    "patients may be contoured a little worse.</p>\n"
)

ABOUT_FOLDS = "<p>Every case by the network that never saw it, on the grid of its file.</p>\n"

PAGE_STYLE = """
.bar { display: inline-block; height: .8em; background: #4a7ebb; vertical-align: middle; }
ul.reasons li { margin: .25em 0; }
"""


@dataclass(frozen=True, eq=False)
class Training:
    """A run that has ended, as its page shows it.

    Attributes:
        name: Of the run.
        dataset: Its name, for people.
        ending: ``finished`` or ``stopped early``.
        num_steps: Steps done.
        plan: As it was frozen.
        log: Entries of ``log.jsonl``: of kind ``step`` and ``validation``, and what went wrong on the way.
        seconds: Wall clock by stage [s], in the order they are shown.
        figures: Folder of curves, first batches and scores; what is not there is not shown.
        evaluation: Of the bundle on the validation cases; None where there are none.
        failed: By case, why it was left out.
        notes: What else people should know, in sentences.
        folds: By name, the pages of a cross-validation's folds, relative to this page.
    """

    name: str
    dataset: str
    ending: str
    num_steps: int
    plan: Plan
    log: Entries
    seconds: Mapping[str, float]
    figures: Path
    evaluation: Evaluation | None
    failed: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    folds: Mapping[str, str] = field(default_factory=dict)


def write_training_page(path: Path, training: Training) -> None:
    """Write the page.

    Args:
        path: HTML file to write.
        training: What is shown.
    """
    parts = [
        page_head(f"Training of {training.name}", _lead(training), PAGE_STYLE),
        _folds(training.folds),
        _scores(training),
        _curves(training.figures),
        plan_section(training.plan),
        _time(training.seconds),
        _happened(training),
        _first_batches(training.figures),
        "" if training.evaluation is None else definitions_section(training.evaluation),
        f"<footer>Made by medseg {escape(VERSION)}. The same as data: report.json, plan.json, log.jsonl.</footer>",
    ]
    write_text_atomically(path, "\n".join([*parts, "</body></html>\n"]), overwrite=True)


def _lead(training: Training) -> str:
    plan = training.plan
    if training.folds:
        lead = f"{training.dataset}: every case validates in one fold. {training.num_steps} steps in all"
    else:
        cases = f"{len(plan.training_cases)} cases trained, {len(plan.validation_cases)} validate"
        lead = f"{training.dataset}: {cases}. {training.ending.capitalize()} after {training.num_steps} steps"
    if training.seconds:
        lead += f", {duration_text(sum(training.seconds.values()))}"
    if training.evaluation is None:
        return f"{lead}."
    dice = training.evaluation.summary["mean"]["dice"]
    return (
        f"{lead}. Mean Dice {number(dice['mean'], 3)} ({interval(dice, 3)}) on {len(training.evaluation.cases)} cases."
    )


def _folds(pages: Mapping[str, str]) -> str:
    if not pages:
        return ""
    items = "\n".join(f'<li><a href="{escape(page)}">{escape(name)}</a></li>' for name, page in pages.items())
    return f"<h2>Folds</h2>\n<p>Each is a run of its own.</p>\n<ul>{items}</ul>"


def _scores(training: Training) -> str:
    if training.evaluation is None:
        return (
            "<h2>Scores</h2>\n<p>No case was set aside to validate, so nothing here says how good the network is. "
            "Cross-validation does: <code>medseg train --fold each</code>.</p>"
        )
    if not training.evaluation.cases:
        return "<h2>Scores</h2>\n<p>No validation case could be scored: see below.</p>"
    told = ABOUT_FOLDS if training.folds else ABOUT_RUN
    sections = [
        summary_section(training.evaluation, training.figures / SCORES, "Scores", told),
        worst_section(training.evaluation, NUM_WORST),
        cases_section(training.evaluation),
    ]
    return "\n".join(sections)


def _curves(figures: Path) -> str:
    if not (figures / CURVES).exists():
        return ""
    return (
        "<h2>Curves</h2>\n<p>Loss and learning rate of each step; Dice of the validations during training, on the network's "
        "own grid and the first validation cases only. A loss that still falls at the end would gain from a longer run; "
        f"Dice that falls while the loss does is overfitting.</p>\n{picture(figures / CURVES, 'Curves', is_photo=False)}"
    )


def _time(seconds: Mapping[str, float]) -> str:
    total = sum(seconds.values())
    if total <= 0:
        return ""
    rows = []
    for stage, spent in seconds.items():
        bar = f'<td class="text"><span class="bar" style="width:{200 * spent / total:.0f}px"></span></td>'
        rows.append([escape(stage), duration_text(spent), f"{spent / total:.0%}", bar])
    rows.append(["all", duration_text(total), "", ""])
    return f"<h2>Time by stage</h2>\n{table(['stage', 'time', 'share', ''], rows, mean_last=True)}"


def _happened(training: Training) -> str:
    told = [f"{case} was left out: {why}" for case, why in training.failed.items()]
    told += [sentence for entry in training.log if (sentence := event(entry))]
    if training.evaluation is not None:
        told += [*training.evaluation.notes, *training.evaluation.problems.values()]
    told += training.notes
    nothing = "<p>Nothing: every case was read, every loss was finite, and memory was enough.</p>"
    return f"<h2>What happened on the way</h2>\n{bullets(told) if told else nothing}"


def event(entry: Mapping[str, Any]) -> str:
    """A log entry that is neither a step nor a validation, as a sentence; nothing for those."""
    match entry["kind"]:
        case "step" | "validation":
            return ""
        case "nonfinite":
            places = "; ".join(entry["origins"])
            return f"Step {entry['step']} was skipped, because the {entry['what']}: {places}. Look at these with medseg check."
        case "memory":
            size, batch = entry["micro_batch_size"], entry["batch_size"]
            return (
                f"Memory ran out at step {entry['step']}: from there on {size} of the batch's {batch} patches at once, with the "
                "same effective batch."
            )
        case kind:
            values = ", ".join(f"{key} {value}" for key, value in entry.items() if key not in ("kind", "step"))
            return f"{kind} at step {entry['step']}: {values}"


def _first_batches(figures: Path) -> str:
    path = figures / FIRST_BATCHES
    if not path.exists():
        return ""
    told = "<p>After augmentation: wrong labels, windows, or left and right that are swapped show here.</p>"
    return (
        f"<h2>The first patches, as the network sees them</h2>\n{told}\n{picture(path, 'First patches', is_photo=True)}"
    )
