"""A card says what its parts say, and nothing of figures that do not exist."""

from __future__ import annotations

from medseg.core.labels import LabelSchema, Structure
from medseg.data.fingerprint import ChannelIntensities, Fingerprint
from medseg.data.plan import Plan
from medseg.inference.description import ModelDescription
from medseg.metrics.aggregate import summarise
from medseg.metrics.case import StructureScore
from medseg.models.config import UNetConfig
from medseg.report.model_card import DataSource, ModelCard, card_markdown

SCHEMA = LabelSchema((Structure("heart", 1, tolerance_mm=3.0), Structure("lung", 2, tolerance_mm=3.0)))

DESCRIPTION = ModelDescription(
    task="ct_segmentation",
    name="chest",
    network=UNetConfig(),
    modalities=("CT",),
    labels=SCHEMA,
    activation="softmax",
    plan=Plan(
        spacing_ijk_mm=(4.0, 4.0, 3.0), patch_ijk=(64, 48, 80), strides=((1, 1, 1),), normalisation=(), batch_size=2
    ),
)

CASES = Fingerprint(
    shapes=((100, 60, 100), (120, 60, 100), (110, 60, 90)),
    spacings_mm=((4.0, 4.0, 3.0), (4.0, 4.0, 2.5), (5.0, 5.0, 3.0)),
    channels=(ChannelIntensities(-900.0, 300.0, 0.0, 1.0),),
    num_annotated={"heart": 3, "lung": 1},
    median_volume_ml={"heart": 500.0, "lung": 2000.0},
)


def card_of(scores: dict | None) -> str:
    source = DataSource("Chest CTs", "From somewhere.", "MIT", "Somebody 2021", ("Adults only.",))
    card = ModelCard(
        "chest", "Contours two.", source, CASES, DESCRIPTION, 1234567, ("10 steps.",), scores, ("By folds.",), ("Diagnosis.",), "make chest"
    )  # fmt: skip
    return card_markdown(card)


def test_data_licence_limits_and_what_it_knows_stand_in_it() -> None:
    text = card_of(None)
    for part in (
        "# chest", "medseg predict chest SCAN", "- Diagnosis.", "Licence of the data: MIT", "Somebody 2021", "Adults only.",
        "heart in 3, lung in 1", "3 cases", "4.0 × 4.0 × 3.0 (4.0 × 4.0 × 2.5 to 5.0 × 5.0 × 3.0) mm",
        "480 × 240 × 270 (400 × 240 × 250 to 550 × 300 × 300) mm", "4.00 × 4.00 × 3.00 mm: nothing finer",
        "256 × 192 × 240 mm at once", "1,234,567 weights", "10 steps.", "make chest",
    ):  # fmt: skip
        assert part in text, part


def test_without_a_cross_validation_nothing_is_claimed() -> None:
    text = card_of(None)
    assert "nothing is known of unseen patients" in text
    assert "Dice" not in text


def test_figures_are_those_of_the_cross_validation() -> None:
    cases = {
        case: {"heart": StructureScore(dice, dice / 2, 4.0, 0.0, "scored"), "lung": StructureScore(0.0, 0.0, None, 0.0, "missing")}
        for case, dice in (("a", 0.5), ("b", 0.7), ("c", 0.9))
    }  # fmt: skip
    summary = summarise(cases, SCHEMA)
    rows = {line.split(" | ")[0].strip("|* "): line for line in card_of(summary).splitlines() if line.startswith("| ")}
    dice = summary["heart"]["dice"]
    assert rows["heart"] == f"| heart | 0.700 | {dice['low']:.3f} to {dice['high']:.3f} | 0.350 | 4.0 | 3 | 0 |"
    assert rows["lung"].endswith("| – | 3 | 3 |")
    assert rows["mean"].startswith("| **mean** | 0.350 |")
    assert "surface Dice at 3 mm" in card_of(summary)
