from __future__ import annotations

import csv
import io
import json
import warnings

import numpy as np
import pytest
from scipy import stats

from medseg.core.labels import LabelSchema, Structure
from medseg.metrics import aggregate
from medseg.metrics.aggregate import (
    METRICS,
    mean_intervals,
    metrics_document,
    metrics_rows,
    score_table,
    summarise,
    summary_rows,
)  # fmt: skip
from medseg.metrics.case import StructureScore

SCHEMA = LabelSchema((Structure("a", 1), Structure("b", 2), Structure("never", 3)))


def score(dice: float | None, status: str = "scored") -> StructureScore:
    return StructureScore(dice, dice, None if dice is None else 1.0, 0.0, status)


CASES = {
    "x": {"a": score(0.8), "b": score(0.2)},
    "y": {"a": score(0.6)},
    "z": {"a": score(0.0, "missing"), "b": score(None, "absent")},
}


def ends(interval: dict[str, float | None]) -> list[float | None]:
    return [interval["low"], interval["high"]]


def test_mean_is_over_structures_of_means_over_cases() -> None:
    summary = summarise(CASES, SCHEMA)
    assert summary["a"]["dice"]["mean"] == pytest.approx((0.8 + 0.6 + 0.0) / 3)
    assert summary["b"]["dice"]["mean"] == pytest.approx(0.2)
    assert summary["mean"]["dice"]["mean"] == pytest.approx((1.4 / 3 + 0.2) / 2)
    assert [summary[name]["dice"]["num_cases"] for name in ("a", "b", "never", "mean")] == [3, 1, 0, 3]
    assert summary["never"]["dice"]["mean"] is None
    assert [summary[name]["num_missing"] for name in ("a", "b", "mean")] == [1, 0, 1]
    assert [summary[name]["num_spurious"] for name in ("a", "b", "mean")] == [0, 0, 0]


def test_every_number_of_a_score_is_summarised_and_no_count_is() -> None:
    assert {"dice", "iou", "nsd", "hd95_mm", "assd_mm", "volume_difference_ml", "lesion_f1"} <= set(METRICS)
    assert not {"status", "num_lesions"} & set(METRICS)
    assert set(summarise(CASES, SCHEMA)["a"]) == {*METRICS, "num_missing", "num_spurious"}


def reference_interval(values: np.ndarray) -> tuple[float, float]:
    result = stats.bootstrap((values,), np.mean, method="BCa", n_resamples=9999, rng=np.random.default_rng(8))
    return result.confidence_interval.low, result.confidence_interval.high


@pytest.mark.parametrize("num_cases", [10, 20, 120])
@pytest.mark.parametrize("kind", ["uniform", "skewed", "one outlier", "many ties"])
def test_intervals_agree_with_scipy(num_cases: int, kind: str) -> None:
    rng = np.random.default_rng(num_cases)
    values = {
        "uniform": rng.uniform(0.3, 0.9, num_cases),
        "skewed": 1 - rng.gamma(0.7, 0.1, num_cases),
        "one outlier": np.append(rng.normal(0.9, 0.01, num_cases - 1), 0.0),
        "many ties": rng.integers(0, 3, num_cases) / 2,
    }[kind]
    column, mean = mean_intervals([values[:, None]])[0]
    assert column == mean, "one structure is its own mean"
    assert column["mean"] == pytest.approx(values.mean())
    width = column["high"] - column["low"]
    assert ends(column) == pytest.approx(reference_interval(values), abs=0.05 * width)


def test_it_is_no_plain_percentile_interval() -> None:
    """Where scores are skewed, the interval is moved towards the tail."""
    values = 1 - np.random.default_rng(3).gamma(0.2, 0.2, 40)
    draws = np.random.default_rng(0).choice(values, (20_000, 40)).mean(axis=1)
    low, high = np.percentile(draws, [2.5, 97.5])
    bca = mean_intervals([values[:, None]])[0][0]
    assert bca["low"] < low - 0.05 * (high - low)
    assert bca["high"] < high - 0.02 * (high - low)


def test_the_mean_over_structures_agrees_with_scipy_under_partial_annotation() -> None:
    rng = np.random.default_rng(2)
    table = rng.beta(6, 2, (40, 3))
    table[rng.random(table.shape) < 0.3] = np.nan

    def statistic(rows: np.ndarray) -> float:
        return float(np.nanmean(np.nanmean(table[rows], axis=0)))

    rows = np.arange(len(table))
    found = stats.bootstrap((rows,), statistic, vectorized=False, method="BCa", n_resamples=4999, rng=rng)
    ours = mean_intervals([table])[0][-1]
    assert ours["mean"] == pytest.approx(statistic(rows))
    width = ours["high"] - ours["low"]
    assert ends(ours) == pytest.approx([*found.confidence_interval], abs=0.06 * width)


def test_an_interval_covers_the_true_mean_as_often_as_it_says() -> None:
    """Of 300 samples of 30 scores, of a skewed distribution; a percentile interval reaches less."""
    rng = np.random.default_rng(11)
    tables = 1 - rng.gamma(2.0, 0.05, (30, 300))
    covered = [entry["low"] <= 0.9 <= entry["high"] for entry in mean_intervals([tables])[0][:-1]]
    assert 0.90 <= np.mean(covered) <= 0.98


def test_structures_are_resampled_together_with_their_case() -> None:
    # b is 1 - a in every case: the mean of both is .5 in every draw, but only where the draws are joint.
    values = np.random.default_rng(5).uniform(0.0, 1.0, 20)
    cases = {f"c{n}": {"a": score(float(v)), "b": score(float(1 - v))} for n, v in enumerate(values)}
    summary = summarise(cases, SCHEMA)
    assert summary["a"]["dice"]["high"] - summary["a"]["dice"]["low"] > 0.1
    assert [summary["mean"]["dice"][key] for key in ("low", "mean", "high")] == pytest.approx([0.5, 0.5, 0.5])


def test_intervals_do_not_depend_on_other_structures_and_scale_with_the_unit() -> None:
    rng = np.random.default_rng(6)
    one, two = rng.random(15), rng.random(15)
    alone, together = mean_intervals([one[:, None]])[0][0], mean_intervals([np.stack([one, two], axis=1)])[0][0]
    assert ends(alone) == pytest.approx(ends(together), rel=1e-12)
    assert mean_intervals([two[:, None], one[:, None]])[1][0] == alone, "tables are drawn together, and told apart"
    scaled = mean_intervals([1000 * one[:, None] - 7])[0][0]
    assert ends(scaled) == pytest.approx([1000 * end - 7 for end in ends(alone)])
    turned = mean_intervals([-one[:, None]])[0][0]
    assert [-turned["high"], -turned["low"]] == pytest.approx(ends(alone), abs=2e-3)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ([[0.7]], (0.7, 0.7)),
        ([[0.7], [0.7], [0.7]], (0.7, 0.7)),
        ([[0.1 + 0.2], [0.3], [0.3]], (0.3, 0.3)),
        ([[np.nan], [0.4], [np.nan]], (0.4, 0.4)),
        ([[1.0], [1.0], [1.0], [0.0]], None),
        ([[0.0, np.nan], [np.nan, 1.0]], None),
        ([[np.nan, np.nan], [0.2, np.nan], [0.4, 0.9]], None),
    ],
    ids=[
        "one case",
        "all equal",
        "equal but for rounding",
        "annotated once",
        "one fails",
        "disjoint",
        "a case unscored",
    ],
)
def test_few_and_equal_scores(columns: list[list[float]], expected: tuple[float, float] | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        intervals = mean_intervals([np.array(columns)])[0]
    for interval in intervals:
        assert interval["low"] <= interval["mean"] + 1e-9
        assert interval["high"] >= interval["mean"] - 1e-9
        assert np.isfinite(ends(interval)).all()
    if expected:
        assert ends(intervals[0]) == pytest.approx(expected)


def test_the_seed_decides_the_draws() -> None:
    cases = {f"c{n}": {"a": score(n / 10)} for n in range(10)}
    assert summarise(cases, SCHEMA, seed=0) == summarise(cases, SCHEMA, seed=0)
    assert summarise(cases, SCHEMA, seed=0) != summarise(cases, SCHEMA, seed=1)


def test_drawing_in_chunks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    table = np.random.default_rng(0).random((12, 3))
    whole = mean_intervals([table])[0]
    monkeypatch.setattr(aggregate, "CHUNK_NUMBERS", 37 * 12)
    for one, other in zip(whole, mean_intervals([table])[0], strict=True):
        assert ends(one) == pytest.approx(ends(other))


def test_nothing_scored_gives_nulls_and_counts_the_cases() -> None:
    nothing = {"mean": None, "low": None, "high": None}
    summary = summarise({"x": {"a": score(None, "absent")}, "y": {}}, SCHEMA)
    assert summary["mean"]["dice"] == {**nothing, "num_cases": 2}
    assert summary["a"]["hd95_mm"] == {**nothing, "num_cases": 0}
    assert summarise({}, SCHEMA)["mean"]["dice"] == {**nothing, "num_cases": 0}


def test_a_missing_structure_counts_in_dice_but_has_no_distance() -> None:
    cases = {"x": {"a": score(0.8)}, "y": {"a": StructureScore(0.0, 0.0, None, -3.0, "missing")}}
    entry = summarise(cases, SCHEMA)["a"]
    assert (entry["dice"]["mean"], entry["dice"]["num_cases"]) == (pytest.approx(0.4), 2)
    assert (entry["hd95_mm"]["mean"], entry["hd95_mm"]["num_cases"]) == (1.0, 1)
    assert entry["volume_difference_ml"]["mean"] == pytest.approx(-1.5)


def test_document_and_rows_hold_every_score() -> None:
    summary = summarise(CASES, SCHEMA)
    document = metrics_document(CASES, summary)
    assert json.loads(json.dumps(document))["cases"]["x"]["b"]["dice"] == 0.2
    assert {(row["case"], row["structure"]) for row in metrics_rows(CASES)} == {(c, s) for c in CASES for s in CASES[c]}
    rows = summary_rows(summary)
    assert [row["structure"] for row in rows] == ["a", "b", "never", "mean"]
    assert rows[0]["dice_mean"] == summary["a"]["dice"]["mean"]
    assert (rows[0]["num_missing"], rows[0]["dice_num_cases"]) == (1, 3)
    text = io.StringIO()
    csv.DictWriter(text, list(rows[0])).writerows(rows)
    assert len(text.getvalue().splitlines()) == 4


def test_scores_stand_at_their_case_and_structure() -> None:
    np.testing.assert_array_equal(
        score_table(CASES, SCHEMA.names, "dice"),
        [[0.8, 0.2, np.nan], [0.6, np.nan, np.nan], [0.0, np.nan, np.nan]],
    )
