from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg.data.worth import MAX_STEPS, Run, losses

HEAD_NECK = (511.7, 296.9, 320.0), [21.5, 10.5, 20.5, 20.2, 11.3, 23.5, 13.1]
"""Median extent [mm] and thicknesses [mm] of hn_oar."""

UNET = Run((4.625, 4.625, 2.5), (80, 40, 80), 2, 1_370_000, 2, 4489)
"""16 to 128 features, first stride 2, 20 minutes on two cores."""


def expected(run: Run) -> float:
    return 1 - sum(losses(run, *HEAD_NECK).values())


@pytest.mark.parametrize(
    ("run", "measured"),
    [
        (UNET, 0.713),
        (replace(UNET, num_steps=1635), 0.654),
        (replace(UNET, num_steps=1000), 0.60),
        # MONAI's residual U-Net, 16 to 256 features, 3 mm, four patches of 64^3
        (Run((3.0, 3.0, 3.0), (64, 64, 64), 2, 4_800_000, 4, 1090), 0.66),
    ],
)
def test_measured_runs_are_forecast_within_a_twentieth(run: Run, measured: float) -> None:
    assert expected(run) == pytest.approx(measured, abs=0.05)


def test_few_steps_are_worth_next_to_nothing() -> None:
    assert expected(replace(UNET, num_steps=300)) < 0.45
    assert losses(replace(UNET, num_steps=1), *HEAD_NECK)["training time"] == 1.0


@given(st.integers(1, 2 * MAX_STEPS), st.integers(1, 16), st.integers(10**4, 10**8), st.sampled_from([1, 2]))
def test_more_of_anything_is_never_worse(num_steps: int, batch: int, parameters: int, stem: int) -> None:
    run = Run((4.0, 4.0, 4.0), (48, 32, 48), stem, parameters, batch, num_steps)
    better = [
        replace(run, num_steps=num_steps + 1000),
        replace(run, batch_size=batch + 1),
        replace(run, num_parameters=2 * parameters),
        replace(run, patch_ijk=(64, 48, 64)),
        replace(run, stem_stride=1),
        replace(run, spacing_ijk_mm=(3.0, 3.0, 3.0), patch_ijk=(64, 48, 64)),
    ]
    for other in better:
        assert expected(other) >= expected(run) - 1e-9
    assert all(0 <= loss <= 1 for loss in losses(run, *HEAD_NECK).values())


def test_after_the_last_step_that_teaches_nothing_is_gained() -> None:
    assert expected(replace(UNET, num_steps=MAX_STEPS)) == expected(replace(UNET, num_steps=3 * MAX_STEPS))


def test_thin_structures_suffer_most_from_a_coarse_grid() -> None:
    def lost(thickness: float) -> float:
        coarse, fine = (losses(replace(UNET, spacing_ijk_mm=(s, s, s)), HEAD_NECK[0], [thickness]) for s in (6.0, 3.0))
        return coarse["resolution"] - fine["resolution"]

    assert lost(10.0) > 2 * lost(20.0) > 4 * lost(60.0)
