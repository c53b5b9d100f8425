"""Curves, box plots and patches: that every kind of entry is drawn, and odd ones do not fail."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import image as mpl_image

from medseg.core.labels import LabelSchema, Structure
from medseg.metrics.case import StructureScore
from medseg.report.curves import draw_curves
from medseg.report.figures import new_figure, write_png
from medseg.report.patches import MAX_PATCHES, draw_first_batches
from medseg.report.scores import draw_scores

SCHEMA = LabelSchema((Structure("a", 3, color="#ff0000"), Structure("b", 9, color="#00ff00")))


def picture(path: Path) -> np.ndarray:
    return np.asarray(mpl_image.imread(path))[..., :3]


def step(number: int, loss: float) -> dict[str, Any]:
    return {"kind": "step", "step": number, "loss": loss, "lr": 1e-3, "grad_norm": 1.0}


def validation(number: int, mean: float | None, **dice: float | None) -> dict[str, Any]:
    return {"kind": "validation", "step": number, "mean_dice": mean, "dice": dice}


STEPS = [step(n, 3.0 / n) for n in range(1, 200)]
VALIDATIONS = [validation(50, 0.3, a=0.3, b=None), validation(100, 0.5, a=0.6, b=0.4)]


def test_each_kind_of_entry_fills_its_panel(tmp_path: Path) -> None:
    def ink(log: list[dict[str, Any]]) -> tuple[int, int]:
        draw_curves(tmp_path / "c.png", log)
        dark = picture(tmp_path / "c.png").min(axis=-1) < 0.8
        half = dark.shape[1] // 2
        return int(dark[:, :half].sum()), int(dark[:, half:].sum())

    empty, steps, validations = ink([]), ink(STEPS), ink(VALIDATIONS)
    assert steps[0] > empty[0] + 500
    assert validations[1] > empty[1] + 500


@pytest.mark.parametrize(
    "log",
    [
        [step(1, 2.0)],
        [step(1, float("nan")), step(2, float("nan"))],
        [step(n, float("inf") if n == 60 else 1.0) for n in range(1, 100)],
        [*STEPS, validation(10, None, a=None, b=None)],
        [*STEPS, *VALIDATIONS, {"kind": "something of a later part"}],
    ],
    ids=["one step", "no finite loss", "constant but for one", "nothing measured", "an unknown kind"],
)
def test_odd_logs_are_drawn(tmp_path: Path, log: list[dict[str, Any]]) -> None:
    draw_curves(tmp_path / "c.png", log)
    assert picture(tmp_path / "c.png").std() > 0.05


def score(dice: float, hd95_mm: float | None = 2.0) -> StructureScore:
    return StructureScore(dice, dice, hd95_mm, 0.0, "scored" if hd95_mm is not None else "missing")


def red_columns(path: Path) -> np.ndarray:
    pixels = picture(path)
    return np.unique(np.argwhere((pixels[..., 0] > 0.95) & (pixels[..., 1:] < 0.05).all(axis=-1))[:, 1])


def test_points_lie_at_their_dice(tmp_path: Path) -> None:
    for name, dice in (("low", 0.1), ("high", 0.9)):
        draw_scores(tmp_path / f"{name}.png", {"x": {"a": score(dice, None)}}, SCHEMA)
    low, high = red_columns(tmp_path / "low.png"), red_columns(tmp_path / "high.png")
    first_panel = picture(tmp_path / "low.png").shape[1] // 2
    shift = high[high < first_panel].mean() - low[low < first_panel].mean()
    assert shift > 0.5 * first_panel * 0.8, "most of the panel's width lies between .1 and .9"


def test_a_panel_without_numbers_is_left_out(tmp_path: Path) -> None:
    draw_scores(tmp_path / "with.png", {"x": {"a": score(0.5)}}, SCHEMA)
    draw_scores(tmp_path / "without.png", {"x": {"a": score(0.0, None)}}, SCHEMA)
    assert picture(tmp_path / "without.png").shape[1] < 0.8 * picture(tmp_path / "with.png").shape[1]


def test_no_case_and_nothing_scored_are_drawn(tmp_path: Path) -> None:
    absent = StructureScore(None, None, None, None, "absent")
    for number, cases in enumerate(({}, {"x": {}}, {"x": {"a": absent}})):
        draw_scores(tmp_path / f"{number}.png", cases, SCHEMA)
        assert picture(tmp_path / f"{number}.png").shape[0] > 100


def test_patches_show_labels_at_their_side(tmp_path: Path) -> None:
    labels = np.zeros((40, 30, 20), np.int16)
    labels[30:36, 12:18, 6:12] = 1  # towards the patient's right
    labels[4:10, 12:18, 6:12] = 2
    draw_first_batches(tmp_path / "p.png", [np.zeros((1, 40, 30, 20), np.float32)], [labels], SCHEMA)
    pixels = picture(tmp_path / "p.png")
    axial = pixels[: int(0.8 * len(pixels)), : pixels.shape[1] // 3]  # without the legend
    red = np.argwhere((axial[..., 0] > 0.8) & (axial[..., 1:] < 0.3).all(axis=-1))
    green = np.argwhere((axial[..., 1] > 0.8) & (axial[..., [0, 2]] < 0.3).all(axis=-1))
    assert red[:, 1].mean() + 40 < green[:, 1].mean(), "the patient's right is on the viewer's left"


def test_patches_show_nested_regions_and_what_is_ignored(tmp_path: Path) -> None:
    schema = LabelSchema(
        (Structure("whole", 1, color="#ff0000", region=(1, 2)), Structure("core", 2, color="#00ff00")), ignore_value=3
    )
    labels = np.zeros((40, 40, 40), np.int16)
    labels[10:30, 10:30, 10:30], labels[16:24, 16:24, 16:24], labels[:, :5] = 1, 2, -1
    labels[20, 20, 9] = labels[20, 9, 20] = labels[9, 20, 20] = 1  # the fullest planes are those through the core
    draw_first_batches(tmp_path / "p.png", [np.zeros((1, 40, 40, 40), np.float32)], [labels], schema)
    pixels = picture(tmp_path / "p.png")
    axial = pixels[: int(0.8 * len(pixels)), : pixels.shape[1] // 3]
    red = np.argwhere((axial[..., 0] > 0.8) & (axial[..., 1:] < 0.3).all(axis=-1))
    green = np.argwhere((axial[..., 1] > 0.8) & (axial[..., [0, 2]] < 0.3).all(axis=-1))
    assert np.ptp(red, axis=0) == pytest.approx(2.5 * np.ptp(green, axis=0), rel=0.15), "a contour around each region"


def test_many_patches_without_labels_are_drawn(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = [rng.standard_normal((2, 12, 12, 12)).astype(np.float32) for _ in range(MAX_PATCHES + 4)]
    draw_first_batches(tmp_path / "p.png", images, [np.zeros((12, 12, 12), np.int16)] * len(images), SCHEMA)
    rows, columns = picture(tmp_path / "p.png").shape[:2]
    assert rows / columns < (MAX_PATCHES + 1) / 3


def test_pictures_leave_the_global_state_of_matplotlib_alone() -> None:
    code = "import sys, medseg.report.overlays, medseg.report.curves, medseg.report.scores, medseg.report.patches\n"
    code += "sys.exit('matplotlib.pyplot' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.filterwarnings("error")
def test_a_name_in_chinese_is_drawn_without_noise(tmp_path: Path) -> None:
    figure = new_figure(2.0, 1.0)
    figure.suptitle("患者")
    write_png(tmp_path / "figure.png", figure)
    assert picture(tmp_path / "figure.png").min() < 1
