"""The page of a training: complete, alone, harmless whatever things are called, and worth something without scores."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

from medseg.core.labels import LabelSchema, Structure
from medseg.data.config import WindowNormalisation
from medseg.data.plan import Candidate, DataFacts, Plan, StructureFacts
from medseg.metrics.aggregate import summarise
from medseg.metrics.case import StructureScore
from medseg.report.curves import draw_curves
from medseg.report.evaluation import CURVES, SCORES, Evaluation
from medseg.report.scores import draw_scores
from medseg.report.training import Training, event, write_training_page

EVIL = "<script>alert('1')</script> & \"x\""

SCHEMA = LabelSchema((Structure("heart", 1), Structure(EVIL, 2)))

PLAN = Plan(
    spacing_ijk_mm=(4.0, 4.0, 3.125),
    patch_ijk=(64, 48, 80),
    strides=((1, 1, 1), (2, 2, 2)),
    normalisation=(WindowNormalisation(low=-973, high=1574, mean=192, std=428),),
    batch_size=2,
    num_steps=4711,
    training_cases=("a", "b"),
    validation_cases=("c", "d"),
    reasons=("spacing: the median", f"{EVIL} is why"),
)

LOG = [
    {"kind": "step", "step": 1, "loss": 2.0, "lr": 0.1},
    {"kind": "nonfinite", "step": 2, "what": "loss is nan", "origins": [f"case {EVIL}, patch at 1, 2, 3"]},
    {"kind": "memory", "step": 3, "micro_batch_size": 1, "batch_size": 2},
    {"kind": "step", "step": 3, "loss": 1.0, "lr": 0.05},
    {"kind": "validation", "step": 3, "mean_dice": 0.5, "dice": {"heart": 0.5, EVIL: None}},
]


def evaluation_of(dice: dict[str, float], **changes: object) -> Evaluation:
    cases = {case: {"heart": StructureScore(value, value, 2.0, 0.1, "scored")} for case, value in dice.items()}
    evaluation = Evaluation("the bundle", "data", SCHEMA, "elements", cases, summarise(cases, SCHEMA), {})
    return replace(evaluation, **changes)


def training_of(folder: Path, evaluation: Evaluation | None, **changes: object) -> Training:
    figures = folder / "figures"
    draw_curves(figures / CURVES, LOG)
    if evaluation is not None:
        draw_scores(figures / SCORES, evaluation.cases, SCHEMA)
    training = Training(
        name=EVIL,
        dataset="the data",
        ending="finished",
        num_steps=4711,
        plan=PLAN,
        log=LOG,
        seconds={"steps": 75.0, "validation": 25.0},
        figures=figures,
        evaluation=evaluation,
        failed={"z": f"{EVIL} is damaged"},
    )
    return replace(training, **changes)


class Outline(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.is_open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "img", "br"}:
            self.is_open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.is_open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return "".join(self.texts)


def page_of(folder: Path, training: Training) -> Outline:
    write_training_page(folder / "report.html", training)
    outline = Outline((folder / "report.html").read_text(encoding="utf-8"))
    assert outline.is_open == []
    return outline


def test_all_that_is_known_of_a_run_is_on_its_page(tmp_path: Path) -> None:
    evaluation = evaluation_of({"c": 0.8, "d": 0.4}, problems={"e": f"{EVIL} is left out"}, notes=["only some"])
    outline = page_of(tmp_path, training_of(tmp_path, evaluation, notes=["heart: only the largest part is kept"]))
    for part in (
        "2 cases trained, 2 validate", "Finished after 4711 steps", "100 s", "Mean Dice 0.600",
        "spacing: the median", f"{EVIL} is why", "4 × 4 × 3.125", "64 × 48 × 80", "low -973, high 1574", "Patches a step.",
        "The 2 worst cases", "1. d: mean Dice 0.400", "75%", "25 s",
        f"Step 2 was skipped, because the loss is nan: case {EVIL}, patch at 1, 2, 3", "Memory ran out at step 3",
        f"z was left out: {EVIL} is damaged", f"{EVIL} is left out", "only some", "only the largest part is kept",
    ):  # fmt: skip
        assert part in outline.text, part
    pictures = [attributes["src"] or "" for tag, attributes in outline.tags if tag == "img"]
    assert len(pictures) == 2, "curves and scores"
    assert not {tag for tag, _ in outline.tags} & {"script", "link", "iframe", "object"}
    assert all(picture.startswith("data:image/") for picture in pictures)
    policy = next(attributes["content"] for _, attributes in outline.tags if "http-equiv" in attributes)
    assert (policy or "").startswith("default-src 'none'")


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    training = training_of(tmp_path, evaluation_of({"c": 0.8}))
    pages = [write_training_page(tmp_path / name, training) or (tmp_path / name).read_bytes() for name in ("a", "b")]
    assert pages[0] == pages[1]


def test_a_run_that_validates_on_nothing_says_so(tmp_path: Path) -> None:
    outline = page_of(tmp_path, training_of(tmp_path, None, log=[], failed={}))
    assert "No case was set aside to validate" in outline.text
    assert "Nothing: every case was read" in outline.text
    assert "worst" not in outline.text
    empty = page_of(tmp_path, training_of(tmp_path, evaluation_of({}, problems={"c": "c is left out"})))
    assert "No validation case could be scored" in empty.text
    assert "c is left out" in empty.text


def test_folds_are_linked_and_explained(tmp_path: Path) -> None:
    folds = {"fold_0": "fold_0/report.html", EVIL: 'x"y/report.html'}
    outline = page_of(tmp_path, training_of(tmp_path, evaluation_of({"c": 0.8, "d": 0.4}), folds=folds))
    links = [attributes["href"] for tag, attributes in outline.tags if tag == "a"]
    assert links == list(folds.values())
    assert "Every case by the network that never saw it" in outline.text
    assert "every case validates in one fold" in outline.text


def test_every_entry_of_a_log_can_be_told() -> None:
    assert [event(entry) for entry in LOG if entry["kind"] in ("step", "validation")] == ["", "", ""]
    assert event({"kind": "power cut", "step": 5, "for_s": 3}) == "power cut at step 5: for_s 3"


def test_structures_and_other_plans_are_shown_where_the_planner_weighed_them(tmp_path: Path) -> None:
    facts = DataFacts(
        num_cases=9,
        median_spacing_mm=(4.0, 4.0, 3.0),
        median_extent_mm=(400.0, 300.0, 300.0),
        total_volume_ml=1e5,
        structures={
            EVIL: StructureFacts(num_annotated=7, num_found=5, median_volume_ml=12.34, median_thickness_mm=8.0),
            "never": StructureFacts(num_annotated=9, num_found=0, median_volume_ml=None, median_thickness_mm=None),
        },
    )
    candidates = tuple(
        Candidate(
            spacing_ijk_mm=(4.0, 4.0, 3.0), patch_ijk=(size, 48, 80), strides=((1, 1, 1),), features=None, batch_size=2,
            num_steps=100, seconds_per_step=0.25, peak_bytes=3 * 2**30, expected_dice=0.7, losses={EVIL: 0.3},
        )
        for size in (64, 56)
    )  # fmt: skip
    changes = {"fingerprint": facts, "candidates": candidates, "memory_bytes": {"weights": 2**20, "activations": 2**30}}
    text = page_of(tmp_path, training_of(tmp_path, None, plan=PLAN.model_copy(update=changes))).text
    for part in (
        "9 training cases",
        "12.3",
        "8.0",
        "2.0",
        "64 × 48 × 80",
        "56 × 48 × 80",
        "3.0 GB",
        f"{EVIL} 0.300",
        "weights 1 MB",
    ):
        assert part in text, part
    assert "What was considered" not in page_of(tmp_path, training_of(tmp_path, None)).text


def test_what_is_too_long_to_read_is_not_in_the_table(tmp_path: Path) -> None:
    many = PLAN.model_copy(update={"strides": ((1, 1, 1),) * 100})
    outline = page_of(tmp_path, training_of(tmp_path, None, plan=many))
    assert "strides" not in re.sub("what the network's strides divide", "", outline.text)
