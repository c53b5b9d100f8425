from __future__ import annotations

import json

import numpy as np
import pytest

from medseg.core.labels import LabelSchema, Structure
from medseg.metrics.aggregate import metrics_document, metrics_rows, summarise
from medseg.metrics.surface import StructureScore

SCHEMA = LabelSchema((Structure("a", 1), Structure("b", 2), Structure("never", 3)))


def score(dice: float | None, status: str = "scored") -> StructureScore:
    return StructureScore(dice, dice, None if dice is None else 1.0, 0.0, status)


CASES = {
    "x": {"a": score(0.8), "b": score(0.2)},
    "y": {"a": score(0.6)},
    "z": {"a": score(0.0, "missing"), "b": score(None, "absent")},
}


def test_mean_is_over_structures_of_means_over_cases() -> None:
    summary = summarise(CASES, SCHEMA)
    assert summary["a"]["dice"]["mean"] == pytest.approx((0.8 + 0.6 + 0.0) / 3)
    assert summary["b"]["dice"]["mean"] == pytest.approx(0.2)
    assert summary["mean"]["dice"]["mean"] == pytest.approx((1.4 / 3 + 0.2) / 2)
    assert [summary[name]["dice"]["num_cases"] for name in ("a", "b", "never", "mean")] == [3, 1, 0, 3]
    assert summary["never"]["dice"]["mean"] is None
    assert (summary["a"]["num_missing"], summary["a"]["num_spurious"]) == (1, 0)


def test_intervals_hold_the_mean_and_agree_with_a_plain_bootstrap() -> None:
    rng = np.random.default_rng(3)
    values = rng.uniform(0.3, 0.9, 30)
    cases = {f"c{n}": {"a": score(float(v))} for n, v in enumerate(values)}
    interval = summarise(cases, SCHEMA)["a"]["dice"]
    assert interval["low"] < interval["mean"] < interval["high"]
    plain = np.percentile(rng.choice(values, (20_000, 30)).mean(axis=1), [2.5, 97.5])
    assert [interval["low"], interval["high"]] == pytest.approx(plain, abs=0.01)


def test_structures_are_resampled_together_with_their_case() -> None:
    # b is 1 - a in every case: the mean of both is .5 in every draw, but only where the draws are joint.
    values = np.random.default_rng(5).uniform(0.0, 1.0, 20)
    cases = {f"c{n}": {"a": score(float(v)), "b": score(float(1 - v))} for n, v in enumerate(values)}
    summary = summarise(cases, SCHEMA)
    assert summary["a"]["dice"]["high"] - summary["a"]["dice"]["low"] > 0.1
    assert [summary["mean"]["dice"][key] for key in ("low", "mean", "high")] == pytest.approx([0.5, 0.5, 0.5])


def test_the_seed_decides_the_draws() -> None:
    cases = {f"c{n}": {"a": score(n / 10)} for n in range(10)}
    assert summarise(cases, SCHEMA, seed=0) == summarise(cases, SCHEMA, seed=0)
    assert summarise(cases, SCHEMA, seed=0) != summarise(cases, SCHEMA, seed=1)


def test_nothing_scored_gives_nulls_and_counts_the_cases() -> None:
    summary = summarise({"x": {"a": score(None, "absent")}, "y": {}}, SCHEMA)
    assert summary["mean"]["dice"] == {"mean": None, "low": None, "high": None, "num_cases": 2}
    assert summary["a"]["hd95_mm"] == {"mean": None, "low": None, "high": None, "num_cases": 0}
    assert summarise({}, SCHEMA)["mean"]["dice"] == {"mean": None, "low": None, "high": None, "num_cases": 0}


def test_a_missing_structure_counts_in_dice_but_has_no_distance() -> None:
    cases = {"x": {"a": score(0.8)}, "y": {"a": StructureScore(0.0, 0.0, None, -3.0, "missing")}}
    entry = summarise(cases, SCHEMA)["a"]
    assert (entry["dice"]["mean"], entry["dice"]["num_cases"]) == (pytest.approx(0.4), 2)
    assert (entry["hd95_mm"]["mean"], entry["hd95_mm"]["num_cases"]) == (1.0, 1)
    assert entry["volume_difference_ml"]["mean"] == pytest.approx(-1.5)


def test_document_and_rows_hold_every_score() -> None:
    document = metrics_document(CASES, summarise(CASES, SCHEMA))
    assert json.loads(json.dumps(document))["cases"]["x"]["b"]["dice"] == 0.2
    assert {(row["case"], row["structure"]) for row in metrics_rows(CASES)} == {(c, s) for c in CASES for s in CASES[c]}
