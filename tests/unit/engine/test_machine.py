from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg.core.errors import ConfigError
from medseg.engine.machine import (
    GPU_PROGRAM_BYTES,
    PROFILES,
    USUAL_CPU,
    Machine,
    Step,
    StepTime,
    fit_step_time,
    profile,
)
from medseg.models.cost import NetworkCost

UNET = NetworkCost(1_400_000, 64**3, 1.8e9, 2.9e7, 4.2e6, 8.4e6)
"""16 to 128 features, first stride 2, 64^3 voxels, 8 logits."""

WIDE = NetworkCost(16_500_000, 64**3, 5.9e10, 4.5e8, 6.7e7, 8.4e6)
"""32 to 320 features at full resolution."""

STEPS = [Step(cost.at(edge**3), batch) for cost in (UNET, WIDE) for edge in (32, 64, 96) for batch in (1, 2, 4)]


@given(st.lists(st.sampled_from(STEPS), max_size=6), st.floats(0.05, 20.0))
def test_a_machine_that_is_only_faster_or_slower_is_recognised(probed: list[Step], factor: float) -> None:
    """Whatever was probed, the proportions are the usual ones and the speed is the machine's."""
    real = StepTime(*(factor * USUAL_CPU.coefficients))
    found = fit_step_time([(step, real.seconds(step)) for step in probed])
    expected = real if probed else USUAL_CPU
    for step in STEPS:
        assert found.seconds(step) == pytest.approx(expected.seconds(step), rel=1e-3)


@pytest.mark.parametrize("term", range(5))
@pytest.mark.parametrize("factor", [0.3, 3.0])
def test_another_kind_of_machine_is_learnt_from_the_probe(term: int, factor: float) -> None:
    coefficients = USUAL_CPU.coefficients.copy()
    coefficients[term] *= factor
    real = StepTime(*coefficients)
    found = fit_step_time([(step, real.seconds(step)) for step in STEPS])
    errors = [found.seconds(step) / real.seconds(step) - 1 for step in STEPS]
    assert max(np.abs(errors)) < 0.12


@given(st.lists(st.tuples(st.sampled_from(STEPS), st.floats(1e-3, 100.0)), min_size=1, max_size=6))
def test_no_measurement_makes_more_work_take_less_time(measured) -> None:
    found = fit_step_time(measured)
    assert (found.coefficients >= 0).all()
    times = [found.seconds(Step(UNET, batch)) for batch in (1, 2, 4, 8)]
    assert times == sorted(times)
    assert times[0] > 0


def test_noise_of_a_busy_machine_is_averaged() -> None:
    rng = np.random.default_rng(0)
    measured = [(step, USUAL_CPU.seconds(step) * float(rng.uniform(0.9, 1.1))) for step in STEPS[::3]]
    found = fit_step_time(measured)
    for step in STEPS:
        assert found.seconds(step) == pytest.approx(USUAL_CPU.seconds(step), rel=0.12)


def test_memory_grows_with_what_needs_it() -> None:
    cpu = Machine("cpu", "cpu", USUAL_CPU, 8_000_000_000, 900_000_000, "fp32")
    terms = cpu.memory(Step(UNET, 2), num_moments=2)
    assert terms["activations"] == 2 * UNET.saved_bytes
    assert terms["weights, gradients, optimiser, average"] == UNET.num_parameters * 4 * 5
    assert terms["program"] == 9e8
    larger = cpu.memory(Step(UNET, 4), num_moments=2)
    assert all(larger[name] >= size for name, size in terms.items())
    sgd = cpu.memory(Step(UNET, 2), num_moments=1)
    assert sum(sgd.values()) < sum(terms.values())


def test_half_precision_halves_the_activations_and_not_the_weights() -> None:
    gpu, step = profile("gpu-8g"), Step(WIDE, 2)
    full = Machine("gpu", "cuda", gpu.step_time, gpu.memory_bytes, gpu.program_bytes, "fp32")
    half_terms, full_terms = gpu.memory(step, 2), full.memory(step, 2)
    assert half_terms["activations"] == full_terms["activations"] / 2
    assert half_terms["weights, gradients, optimiser, average"] == full_terms["weights, gradients, optimiser, average"]


def test_profiles_are_machines_with_names() -> None:
    for name, card in PROFILES.items():
        machine = profile(name)
        assert (machine.name, machine.memory_bytes, machine.device) == (name, card.memory_bytes, "cuda")
        assert machine.program_bytes == GPU_PROGRAM_BYTES < machine.memory_bytes
    with pytest.raises(ConfigError, match="gpu-8g, gpu-12g"):
        profile("gpu-9g")


def test_a_profile_is_as_fast_as_nnunet_found_it() -> None:
    """250 steps of two 128^3 patches with 32 to 320 features in six stages: 55 s on an A100."""
    six_stages = NetworkCost(31_000_000, 128**3, 8 * 5.9e10, 8 * 4.5e8, 5.4e8, 128**3 * 8.0)
    assert 250 * profile("gpu-80g").step_time.seconds(Step(six_stages, 2)) == pytest.approx(55, rel=0.35)
