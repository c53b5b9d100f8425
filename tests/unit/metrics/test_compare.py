from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from medseg.core.labels import LabelSchema, Structure
from medseg.metrics.aggregate import METRICS, mean_intervals, summarise
from medseg.metrics.case import StructureScore
from medseg.metrics.compare import compare, differences, holm

SCHEMA = LabelSchema((Structure("a", 1), Structure("b", 2)))


def score(dice: float, hd95_mm: float | None = 2.0, volume_ml: float = 0.0) -> StructureScore:
    return StructureScore(dice, dice, hd95_mm, volume_ml, "scored" if hd95_mm is not None else "missing")


def random_scores(seed: int, num_cases: int = 25, shift: float = 0.0) -> dict[str, dict[str, StructureScore]]:
    rng = np.random.default_rng(seed)
    return {
        f"c{n}": {name: score(float(rng.uniform(0.2, 0.8) + shift), float(rng.uniform(1, 9))) for name in SCHEMA.names}
        for n in range(num_cases)
    }


def test_holm_against_a_calculation_by_hand() -> None:
    # Sorted .01 .02 .03 .04 times 4 3 2 1: .04 .06 .06 .04, and never below the one before.
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, None, 0.6]) == [1.0, None, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []
    assert holm([None]) == [None]


def test_holm_rejects_what_its_step_down_procedure_rejects() -> None:
    """The procedure as Holm wrote it: the smallest p against α / m, the next against α / (m - 1), until one fails."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        p_values = (rng.random(int(rng.integers(1, 9))) ** 3).tolist()
        alpha = float(rng.uniform(0.01, 0.3))
        rejected = set()
        for rank, place in enumerate(np.argsort(p_values)):
            if p_values[place] > alpha / (len(p_values) - rank):
                break
            rejected.add(int(place))
        assert {place for place, p in enumerate(holm(p_values)) if p <= alpha} == rejected


def test_difference_is_the_difference_of_the_means_where_both_scored_everything() -> None:
    ours, other = random_scores(1), random_scores(2)
    comparison = compare(ours, other, SCHEMA)
    for name in ("a", "b", "mean"):
        for metric in ("dice", "hd95_mm"):
            means = [summarise(scores, SCHEMA)[name][metric]["mean"] for scores in (ours, other)]
            assert comparison[name][metric]["difference"] == pytest.approx(means[0] - means[1])
    table = np.array([[ours[c][s].dice - other[c][s].dice for s in SCHEMA.names] for c in ours])
    for name, interval in zip(("a", "b", "mean"), mean_intervals([table])[0], strict=True):
        assert comparison[name]["dice"]["low"] == interval["low"]
        assert comparison[name]["dice"]["high"] == interval["high"]


def test_the_interval_is_of_pairs() -> None:
    """Cases differ a lot, models by a hair: only pairing sees it."""
    ours, other = random_scores(1, shift=0.01), random_scores(1)
    entry = compare(ours, other, SCHEMA)["a"]["dice"]
    assert entry["low"] == pytest.approx(0.01)
    assert entry["high"] == pytest.approx(0.01)
    assert (entry["better"], entry["worse"], entry["tied"]) == (25, 0, 0)
    assert entry["p_value"] == pytest.approx(2 * 0.5**25)
    assert entry["p_holm"] == pytest.approx(2 * 2 * 0.5**25)


def test_turned_round_everything_changes_sign() -> None:
    ours, other = random_scores(1), random_scores(2)
    one, turned = compare(ours, other, SCHEMA), compare(other, ours, SCHEMA)
    for name in ("a", "b", "mean"):
        for metric in ("dice", "nsd", "hd95_mm"):
            here, there = one[name][metric], turned[name][metric]
            assert here["difference"] == pytest.approx(-there["difference"])
            assert here["low"] == pytest.approx(-there["high"], abs=0.02 * (here["high"] - here["low"]))
            assert (here["better"], here["worse"], here["tied"]) == (there["worse"], there["better"], there["tied"])
            assert (here["p_value"], here["p_holm"]) == (there["p_value"], there["p_holm"])


def test_a_model_against_itself_is_all_ties() -> None:
    scores = random_scores(3)
    for entry in compare(scores, scores, SCHEMA).values():
        for metric in ("dice", "hd95_mm", "volume_difference_ml"):
            counts = [entry[metric][key] for key in ("better", "worse", "tied", "p_value", "p_holm")]
            assert counts == [0, 0, 25, 1.0, 1.0]
            assert [entry[metric][key] for key in ("difference", "low", "high")] == [0.0, 0.0, 0.0]


def test_the_sign_test_is_exact_and_drops_ties() -> None:
    ours = {f"c{n}": {"a": score(0.6)} for n in range(12)}
    others = [0.5] * 7 + [0.7] * 2 + [0.6] * 3
    other = {f"c{n}": {"a": score(dice)} for n, dice in enumerate(others)}
    entry = compare(ours, other, SCHEMA)["a"]["dice"]
    assert (entry["better"], entry["worse"], entry["tied"], entry["num_cases"]) == (7, 2, 3, 12)
    assert entry["p_value"] == pytest.approx(2 * sum(stats.binom.pmf(k, 9, 0.5) for k in (7, 8, 9)))
    assert entry["p_holm"] == entry["p_value"], "b is no test"


def test_smaller_is_better_where_a_distance_is_measured() -> None:
    ours, other = {"x": {"a": score(0.5, 1.0)}}, {"x": {"a": score(0.5, 3.0)}}
    entry = compare(ours, other, SCHEMA)["a"]
    assert (entry["hd95_mm"]["difference"], entry["hd95_mm"]["better"], entry["hd95_mm"]["worse"]) == (-2.0, 1, 0)
    assert entry["dice"]["tied"] == 1


def test_volume_differences_are_compared_by_their_size() -> None:
    ours = {"x": {"a": score(0.5, 1.0, -1.0)}, "y": {"a": score(0.5, 1.0, 5.0)}}
    other = {"x": {"a": score(0.5, 1.0, 4.0)}, "y": {"a": score(0.5, 1.0, -5.0)}}
    entry = compare(ours, other, SCHEMA)["a"]["volume_difference_ml"]
    assert (entry["better"], entry["worse"], entry["tied"]) == (1, 0, 1)
    assert entry["difference"] == pytest.approx((1 - 4 + 5 - 5) / 2)


def test_every_other_metric_is_better_when_larger() -> None:
    better = StructureScore(0.9, 0.9, 1.0, 0.0, "scored", 0.9, 0.1, 0.9, 0.9, 0.9)
    worse = StructureScore(0.1, 0.1, 9.0, -8.0, "scored", 0.1, 2.0, 0.1, 0.1, 0.1)
    entry = compare({"x": {"a": better}}, {"x": {"a": worse}}, SCHEMA)["a"]
    assert {metric: entry[metric]["better"] for metric in METRICS} == dict.fromkeys(METRICS, 1)


def test_only_pairs_of_numbers_are_compared() -> None:
    ours = {"x": {"a": score(0.5)}, "y": {"a": score(0.0, None)}, "z": {}}
    other = {"x": {"a": score(0.4, 5.0)}, "y": {"a": score(0.6, 4.0)}, "z": {}}
    comparison = compare(ours, other, SCHEMA)
    assert comparison["a"]["dice"]["num_cases"] == 2
    assert comparison["a"]["hd95_mm"]["num_cases"] == 1
    assert comparison["b"]["dice"] == {
        "difference": None, "low": None, "high": None, "num_cases": 0, "better": 0, "worse": 0, "tied": 0,
        "p_value": None, "p_holm": None,
    }  # fmt: skip
    assert comparison["mean"]["dice"]["num_cases"] == 2
    np.testing.assert_array_equal(
        differences(ours, other, SCHEMA.names, "hd95_mm"), [[-3.0, np.nan], *[[np.nan] * 2] * 2]
    )


def test_the_order_of_the_cases_does_not_matter() -> None:
    ours, other = random_scores(4), random_scores(5)
    assert compare(ours, other, SCHEMA) == compare(ours, dict(reversed(other.items())), SCHEMA)


def test_the_mean_counts_cases_by_their_mean_over_structures() -> None:
    ours = {"x": {"a": score(0.9), "b": score(0.1)}, "y": {"a": score(0.5), "b": score(0.5)}}
    other = {"x": {"a": score(0.1), "b": score(0.2)}, "y": {"a": score(0.6), "b": score(0.4)}}
    entry = compare(ours, other, SCHEMA)["mean"]["dice"]
    assert (entry["better"], entry["worse"], entry["tied"]) == (1, 0, 1)
    assert entry["p_holm"] == entry["p_value"]
    gone = {case: {name: replace(s, dice=None) for name, s in scores.items()} for case, scores in other.items()}
    assert compare(ours, gone, SCHEMA)["mean"]["dice"]["p_value"] is None
