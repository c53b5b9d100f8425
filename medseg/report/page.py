"""An evaluation as one HTML page: it carries its pictures, asks nobody for anything, and opens without a network.

Everything that comes from names of files, cases and structures is escaped. The same evaluation gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from medseg.core.version import VERSION
from medseg.io.atomic import write_text_atomically
from medseg.metrics.aggregate import METRICS
from medseg.metrics.case import StructureScore
from medseg.report.evaluation import COMPARISON, SCORES, Comparison, Evaluation
from medseg.report.html import bullets, page_head, picture, table, text_cell
from medseg.report.tables import NOTHING, WORDS, interval, number, p_value, words_of

NUM_WORST = 12
"""Cases shown with their picture; a page with hundreds would neither load nor be read."""

MAX_COLUMNS = 20
"""Structures that get a column of their own in the table of all cases."""


def write_page(path: Path, evaluation: Evaluation) -> None:
    """Write the page.

    Args:
        path: HTML file to write; the figures of all cases lie in ``figures`` beside it.
        evaluation: What is shown.
    """
    figures = path.parent / "figures"
    parts = [
        _head(evaluation),
        summary_section(evaluation, figures / SCORES),
        _comparison(evaluation.comparison, evaluation, figures / COMPARISON),
        _problems(evaluation),
        worst_section(evaluation),
        cases_section(evaluation),
        definitions_section(evaluation),
        f"<footer>Made by medseg {escape(VERSION)}. All scores: metrics.json, metrics.csv, summary.csv.</footer>",
    ]
    write_text_atomically(path, "\n".join([*parts, "</body></html>\n"]), overwrite=True)


def _head(evaluation: Evaluation) -> str:
    title, other = f"Evaluation of {evaluation.predictions}", evaluation.comparison
    against = f", compared with {other.name}" if other else ""
    lead = (
        f"{len(evaluation.cases)} cases against the references {evaluation.references}{against}. "
        f"{len(evaluation.schema.names)} structures; surfaces: {evaluation.surface}."
    )
    return page_head(title, lead)


def summary_section(evaluation: Evaluation, figure: Path, title: str = "Summary", told: str = "") -> str:
    """Means with intervals, and the figure of all scores; ``told`` is HTML above them."""
    shown = _scored_metrics(evaluation)
    header = ["structure", *(escape(words_of(metric).name) for metric in shown), "cases", "missing", "spurious"]
    rows = []
    for name, entry in evaluation.summary.items():
        cells = [_with_interval(entry[metric], words_of(metric).digits) for metric in shown]
        counts = (entry["dice"]["num_cases"], entry["num_missing"], entry["num_spurious"])
        rows.append([escape(name), *cells, *map(str, counts)])
    return (
        f"<h2>{title}</h2>\n{told}<p>Means, and below each where the mean would lie, 19 times out of 20, for other patients of "
        f"the same kind (95&nbsp;% BCa bootstrap interval over whole cases).</p>\n{table(header, rows, mean_last=True)}\n"
        f"{picture(figure, 'Scores of every case, by structure', is_photo=False)}"
    )


def _comparison(other: Comparison | None, evaluation: Evaluation, figure: Path) -> str:
    if other is None:
        return ""
    shown = [metric for metric in _in_order() if other.summary["mean"][metric]["difference"] is not None]
    header = ["structure", *(escape(words_of(metric).name) for metric in shown), "better / worse / tied in Dice"]
    rows = []
    for name, entry in other.summary.items():
        cells = [_difference(entry[metric], words_of(metric).digits) for metric in shown]
        dice = entry["dice"]
        rows.append([escape(name), *cells, f"{dice['better']} / {dice['worse']} / {dice['tied']}"])
    return (
        f"<h2>{escape(evaluation.predictions)} minus {escape(other.name)}</h2>\n<p>Mean differences on the same cases, "
        "with the 95&nbsp;% BCa interval and the p value of the exact sign test (two-sided, without ties), corrected for the "
        "number of structures by Holm's method. Distances are compared where both models found the structure.</p>\n"
        f"{table(header, rows, mean_last=True)}\n"
        f"{picture(figure, 'Paired differences of every case, by structure', is_photo=False)}"
    )


def _problems(evaluation: Evaluation) -> str:
    sentences = [*evaluation.notes, *evaluation.problems.values()]
    if evaluation.comparison is not None:
        sentences += [f"{evaluation.comparison.name}: {text}" for text in evaluation.comparison.problems.values()]
    if not sentences:
        return "<h2>Problems</h2>\n<p>None: every reference and every prediction was read.</p>"
    return f"<h2>Problems</h2>\n{bullets(sentences)}"


def worst_section(evaluation: Evaluation, num_shown: int = NUM_WORST) -> str:
    """The worst cases, each with its scores and its picture, where there is one."""
    ranked = evaluation.worst_first()[:num_shown]
    shown = _scored_metrics(evaluation)
    sections = [_case(rank, case, mean, evaluation, shown) for rank, (case, mean) in enumerate(ranked, start=1)]
    return "\n".join([f"<h2>The {len(ranked)} worst cases</h2>\n<p>By mean Dice over structures.</p>", *sections])


def _case(rank: int, case: str, mean: float | None, evaluation: Evaluation, shown: Sequence[str]) -> str:
    rows = []
    for name, score in evaluation.cases[case].items():
        cells = [number(getattr(score, metric), words_of(metric).digits) for metric in shown]
        flag = f'<span class="flag">{score.status}</span>' if score.status in ("missing", "spurious") else score.status
        rows.append([escape(name), *cells, flag])
    header = ["structure", *(escape(words_of(metric).name) for metric in shown), "status"]
    drawing = evaluation.pictures.get(case)
    drawn = picture(drawing, f"Contours of {case}", is_photo=True) if drawing else "<p>No scan to draw on.</p>"
    title = f"{rank}. {case}: mean Dice {number(mean, 3)}"
    return f'<section class="case"><h3>{escape(title)}</h3>\n{table(header, rows)}\n{drawn}</section>'


def cases_section(evaluation: Evaluation) -> str:
    """A line for each case, worst first."""
    names = evaluation.schema.names if len(evaluation.schema.names) <= MAX_COLUMNS else ()
    header = ["case", "mean Dice", *(map(escape, names) if names else ["worst structure"]), "missing", "spurious"]
    rows = []
    for case, mean in evaluation.worst_first():
        scores = evaluation.cases[case]
        cells = [_shaded(scores.get(name)) for name in names]
        texts = [] if names else [_worst_structure(scores)]
        texts += [", ".join(_of_status(scores, status)) for status in ("missing", "spurious")]
        rows.append([escape(case), number(mean, 3), *cells, *(text_cell(text or NOTHING) for text in texts)])
    told = "<p>Dice, worst first. An empty cell: not annotated, or absent in both.</p>"
    return f"<h2>All cases</h2>\n{told}\n{table(header, rows)}"


def definitions_section(evaluation: Evaluation) -> str:
    """What the metrics mean."""
    known = [(words_of(metric).name, words_of(metric).meaning) for metric in _scored_metrics(evaluation)]
    known.append(("surfaces", _SURFACES.get(evaluation.surface, evaluation.surface)))
    known.append(
        ("missing, spurious", "In the reference and not in the prediction, and the reverse: Dice and NSD are 0.")
    )
    known.append(("mean", "The mean over structures of each structure's mean over the cases that annotate it."))
    items = "\n".join(f"<dt>{escape(name)}</dt><dd>{escape(meaning)}</dd>" for name, meaning in known)
    tolerances = [[escape(s.name), f"{s.tolerance_mm:g}"] for s in evaluation.schema.structures]
    return f"<h2>Definitions</h2>\n<dl>{items}</dl>\n{table(['structure', 'NSD tolerance [mm]'], tolerances)}"


_SURFACES = {
    "elements": "Elements of surface between voxel centres, weighted by their area, as in DeepMind's surface-distance.",
    "borders": "Voxels of the mask with a neighbour outside, as in MONAI.",
}


def _scored_metrics(evaluation: Evaluation) -> list[str]:
    return [metric for metric in _in_order() if evaluation.summary["mean"][metric]["mean"] is not None] or ["dice"]


def _in_order() -> list[str]:
    """Metrics as people look for them."""
    return sorted(METRICS, key=lambda metric: [*WORDS, metric].index(metric))


def _of_status(scores: Mapping[str, StructureScore], status: str) -> list[str]:
    return [name for name, score in scores.items() if score.status == status]


def _worst_structure(scores: Mapping[str, StructureScore]) -> str:
    scored = [(score.dice, name) for name, score in scores.items() if score.dice is not None]
    return f"{min(scored)[1]} ({min(scored)[0]:.2f})" if scored else ""


def _shaded(score: StructureScore | None) -> str:
    """A cell that is redder the lower its Dice is."""
    if score is None or score.dice is None:
        return "<td></td>"
    return f'<td style="background:rgba(205,60,40,{0.75 * (1 - score.dice):.2f})">{score.dice:.2f}</td>'


def _with_interval(entry: Mapping[str, Any], digits: int) -> str:
    return f"{number(entry['mean'], digits)}<br><small>{interval(entry, digits)}</small>"


def _difference(entry: Mapping[str, Any], digits: int) -> str:
    ends = f"{interval(entry, digits, signed=True)}<br>p {escape(p_value(entry['p_holm']))}"
    return f"{number(entry['difference'], digits, signed=True)}<br><small>{ends}</small>"
