"""The planner on made-up machines: nothing is measured, so each choice follows from stated numbers."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medseg.core.case import Dataset
from medseg.core.errors import ConfigError, ResourceError
from medseg.core.labels import LabelSchema, Structure
from medseg.core.progress import silent
from medseg.core.task import Limits
from medseg.data.config import PlanChoices
from medseg.data.plan import FEW_VOXELS_THICK, DataFacts, Plan, StructureFacts, voxels_thick
from medseg.engine.config import SGDConfig, StepsLength, TrainerConfig
from medseg.engine.machine import USUAL_CPU, Machine, profile
from medseg.models.config import SegResNetConfig, SwinUNETRConfig, UNetConfig, VNetConfig
from medseg.tasks.ct_segmentation.config import CtSegmentationConfig
from medseg.tasks.ct_segmentation.network import planned_network
from medseg.tasks.ct_segmentation.planner import Planner, fit_plan
from medseg.tasks.ct_segmentation.search import Search, coarsened

GIB = 2**30

DATA = {
    "hn_oar": DataFacts(
        num_cases=121,
        median_spacing_mm=(4.609, 4.609, 3.0),
        median_extent_mm=(507.65, 296.86, 320.0),
        total_volume_ml=5_520_515,
        structures={
            name: StructureFacts(num_annotated=1, num_found=1, median_volume_ml=None, median_thickness_mm=thickness)
            for name, thickness in zip("abcdefg", (21.46, 10.54, 20.52, 20.15, 11.29, 23.52, 13.12), strict=True)
        },
    ),
    "hippocampus": DataFacts(
        num_cases=200,
        median_spacing_mm=(1.0, 1.0, 1.0),
        median_extent_mm=(35.0, 50.0, 36.0),
        total_volume_ml=12_560,
        structures={
            name: StructureFacts(num_annotated=1, num_found=1, median_volume_ml=None, median_thickness_mm=thickness)
            for name, thickness in (("a", 7.72), ("b", 5.93))
        },
    ),
    "sarcoma": DataFacts(
        num_cases=12,
        median_spacing_mm=(1.953125, 1.953125, 3.27),
        median_extent_mm=(167.97, 158.2, 189.66),
        total_volume_ml=75_507,
        structures={"a": StructureFacts(num_annotated=1, num_found=1, median_volume_ml=None, median_thickness_mm=45.7)},
    ),
}
"""Fingerprints of all cases of the shared datasets (``medseg plan DATASET --set splits.fold=none --json``)."""

NNUNET = {"hn_oar": ((112, 64, 112), 6), "hippocampus": ((40, 56, 40), 7), "sarcoma": ((96, 96, 64), 2)}
"""Patch (our axes) and batch of nnU-Net 2.8.1 for 8 GB, 3d_fullres, features 32 to 256 or 320: ``medseg convert DATASET --to
nnunet``, ``nnUNetv2_extract_fingerprint -d D``, ``nnUNetv2_plan_experiment -d D -gpu_memory_target 8``."""

CPU = Machine("two quiet cores", "cpu", USUAL_CPU, 16 * GIB, 900_000_000, "fp32")


def search(name: str = "hn_oar", config: CtSegmentationConfig | None = None) -> Search:
    facts = DATA[name]
    channels = ("CT", "PET") if name == "sarcoma" else ("CT",)
    schema = LabelSchema(tuple(Structure(each, value) for value, each in enumerate(facts.structures, start=1)))
    plan = Plan(
        spacing_ijk_mm=facts.median_spacing_mm,
        patch_ijk=(64, 64, 64),
        strides=((2, 2, 2),) * 4,
        normalisation=(),
        batch_size=2,
        training_cases=tuple(map(str, range(facts.num_cases))),
        validation_cases=tuple(map(str, range(21))),
        fingerprint=facts,
        reasons=("division", "spacing", "patch of old"),
    )
    return Search(config or CtSegmentationConfig(), Dataset(name, channels, schema, (), Path("d")), plan)


def limits(budget_s: float | None, device: str = "cpu", memory_bytes: int | None = None) -> Limits:
    return Limits(budget_s, memory_bytes, device, time.monotonic())


def planned(name: str = "hn_oar", machine: Machine = CPU, budget_s: float | None = 1200.0, config=None) -> Plan:
    device = "cpu" if machine is CPU else machine.name
    own = search(name, config)
    return Planner(own, machine, limits(budget_s, device), 20.0).plan(own.choices())


@pytest.mark.parametrize("budget_s", [None, 2 * 86400.0])
@pytest.mark.parametrize("name", DATA)
def test_a_gpu_of_8_gb_gets_nnunets_plan(name: str, budget_s: float | None) -> None:
    """Patch within one multiple of the strides along each axis, batch within a factor of two, the very same network."""
    plan = planned(name, profile("gpu-8g"), budget_s)
    patch, batch_size = NNUNET[name]
    total = np.prod(np.array(plan.strides), axis=0)
    assert (np.abs(np.array(plan.patch_ijk) - patch) <= total).all(), plan.patch_ijk
    assert batch_size / 2 <= plan.batch_size <= batch_size * 2
    assert plan.spacing_ijk_mm == DATA[name].median_spacing_mm
    assert plan.features == tuple(min(320, 32 * 2**stage) for stage in range(len(plan.strides)))
    assert plan.strides[0] == (1, 1, 1)
    assert (plan.precision, plan.num_steps) == ("fp16", 250_000)
    assert sum(plan.memory_bytes.values()) <= 8 * GIB


def test_twenty_minutes_on_two_cores_give_a_small_network_at_half_resolution() -> None:
    """What was found by hand before there was a planner: 16 to 128 features, first stride 2, two patches of about 64^3."""
    plan = planned()
    assert plan.features is not None
    assert 12 <= plan.features[0] <= 24
    assert plan.strides[0] == (2, 2, 2)
    assert 0.4 * 64**3 < np.prod(plan.patch_ijk) < 2 * 64**3
    assert plan.batch_size == 2
    assert plan.spacing_ijk_mm == DATA["hn_oar"].median_spacing_mm, "the cord is three voxels thick"
    assert (plan.precision, plan.num_steps) == ("fp32", None), "the steps are frozen after a measurement"


def test_with_more_time_everything_grows() -> None:
    plans = [planned(budget_s=budget_s).candidates[0] for budget_s in (300.0, 6 * 3600.0, 7 * 86400.0)]
    costs = [plan.seconds_per_step for plan in plans]
    assert costs == sorted(costs)
    assert [plan.expected_dice for plan in plans] == sorted(plan.expected_dice for plan in plans)
    assert plans[-1].strides[0] == (1, 1, 1)
    assert plans[-1].features == (32, 64, 128, 256, 320) or plans[-1].features == (24, 48, 96, 192, 320)


def test_a_coarser_grid_comes_with_less_time_and_never_hides_a_structure() -> None:
    spacings = [np.prod(planned("sarcoma", budget_s=budget_s).spacing_ijk_mm) for budget_s in (120.0, 7 * 86400.0)]
    assert spacings == sorted(spacings, reverse=True)
    assert spacings[0] > 4 * spacings[-1]
    for name, facts in DATA.items():
        for grid in search(name).grids()[1:]:
            thinnest = min(s.median_thickness_mm for s in facts.structures.values() if s.median_thickness_mm)
            assert voxels_thick(thinnest, grid) >= FEW_VOXELS_THICK
    assert len(search("hn_oar").grids()) == 1


def test_the_finest_axes_are_coarsened_first() -> None:
    assert coarsened((1.0, 1.0, 5.0), 4.0) == (2.0, 2.0, 5.0)
    assert coarsened((1.0, 1.0, 5.0), 200.0) == pytest.approx((10.0, 10.0, 10.0), rel=1e-3)
    assert coarsened((2.0, 3.0, 2.0), 1.5) == pytest.approx((2.4495, 3.0, 2.4495), rel=1e-3)


@pytest.mark.parametrize("memory_gib", [1.3, 1.6, 2.5, 6])
def test_the_plan_fits_into_the_memory(memory_gib: float) -> None:
    machine = replace(CPU, memory_bytes=int(memory_gib * GIB))
    plan = planned(machine=machine, budget_s=7 * 86400.0)
    assert sum(plan.memory_bytes.values()) <= machine.memory_bytes
    assert plan.candidates[0].peak_bytes == pytest.approx(sum(plan.memory_bytes.values()), abs=10)
    assert plan.cases_in_memory == (plan.memory_bytes["cases"] > 0)


def test_too_little_memory_is_refused_with_the_numbers() -> None:
    with pytest.raises(ResourceError, match=r"needs .* of memory \(program 858 MB.*, and there are 868 MB") as caught:
        planned(machine=replace(CPU, memory_bytes=910_000_000))
    assert caught.value.exit_code == 7


def test_what_the_config_says_is_kept() -> None:
    config = CtSegmentationConfig(
        plan=PlanChoices(spacing_mm=(4.609, 4.609, 3.0), patch_ijk=(48, 48, 64)),
        network=UNetConfig(features=(10, 20, 40), stem_stride=1),
        trainer=TrainerConfig(batch_size=3, precision="bf16", optimizer=SGDConfig()),
    )
    plan = planned(config=config, budget_s=7 * 86400.0)
    assert (plan.patch_ijk, plan.batch_size, plan.features) == ((48, 48, 64), 3, (10, 20, 40))
    assert plan.strides == ((1, 1, 1), (2, 2, 2), (2, 2, 2))
    assert plan.precision is None
    assert planned_network(config.network, plan) == config.network
    assert len(plan.candidates) == 1
    some = CtSegmentationConfig(plan=PlanChoices(patch_voxels=32**3), network=UNetConfig(stem_stride=2))
    plan = planned(config=some, budget_s=7 * 86400.0)
    assert 0.6 * 32**3 < np.prod(plan.patch_ijk) < 1.7 * 32**3
    assert plan.strides[0] == (2, 2, 2)


@pytest.mark.parametrize("network", [VNetConfig(width=4), SegResNetConfig(), SwinUNETRConfig()])
def test_other_networks_get_a_patch_that_suits_them(network) -> None:
    plan = planned(config=CtSegmentationConfig(network=network))
    total = np.prod(np.array(plan.strides), axis=0)
    assert (np.array(plan.patch_ijk) % total == 0).all()
    assert np.prod(np.array(plan.patch_ijk) // total) >= 8
    assert plan.features is None
    assert planned_network(network, plan) == network


def test_plans_say_why_and_what_else_was_weighed() -> None:
    plan = planned()
    told = "\n".join(plan.reasons)
    for word in (
        "planned for 20 min and 16.0 GB",
        "s a step",
        "a median case's",
        "M weights",
        "3D",
        "next best",
        "expected to",
    ):
        assert word in told
    assert plan.reasons[:2] == ("division", "spacing")
    assert "patch of old" not in plan.reasons
    dice = [candidate.expected_dice for candidate in plan.candidates]
    assert dice == sorted(dice, reverse=True)
    assert len(plan.candidates) == 5
    assert plan.candidates[0].patch_ijk == plan.patch_ijk
    for candidate in plan.candidates:
        assert candidate.expected_dice == pytest.approx(1 - sum(candidate.losses.values()), abs=1e-3)
    assert Plan.model_validate_json(plan.model_dump_json()) == plan


def test_coarse_slices_are_planned_in_two_dimensions_first() -> None:
    changes = {"median_spacing_mm": (0.8, 0.8, 5.0), "median_extent_mm": (410.0, 410.0, 205.0)}
    facts = DATA["hn_oar"].model_copy(update=changes)
    own = search(config=CtSegmentationConfig(plan=PlanChoices(spacing_mm=(0.8, 0.8, 5.0), patch_voxels=192 * 192 * 24)))
    plan = own.plan.model_copy(update={"fingerprint": facts, "spacing_ijk_mm": (0.8, 0.8, 5.0)})
    flat = Search(own.config, own.dataset, plan)
    plan = Planner(flat, profile("gpu-8g"), limits(None, "gpu-8g"), 0.0).plan(flat.choices())
    assert plan.kernels is not None
    assert plan.kernels[0] == (3, 3, 1)
    assert plan.strides[1] == (2, 2, 1)
    assert any("along K, which is coarse" in reason for reason in plan.reasons)


def test_runs_of_counted_steps_are_as_usual_and_only_shrink() -> None:
    own = search(config=CtSegmentationConfig(trainer=TrainerConfig(length=StepsLength(num_steps=10))))
    assert fit_plan(own.config, own.dataset, own.plan, limits(None), silent) is own.plan


def test_where_there_is_nothing_to_choose_nothing_is_measured_and_memory_is_told() -> None:
    config = CtSegmentationConfig(
        plan=PlanChoices(patch_voxels=64**3),
        network=UNetConfig(features=(16, 32, 64, 128), stem_stride=2),
        trainer=TrainerConfig(batch_size=2),
    )
    own = search(config=config)
    began = time.monotonic()
    plan = fit_plan(config, own.dataset, own.plan, limits(1200.0), silent)
    assert time.monotonic() - began < 5
    assert (plan.patch_ijk, plan.reasons, plan.candidates) == (own.plan.patch_ijk, own.plan.reasons, ())
    assert sum(plan.memory_bytes.values()) > 500e6
    with pytest.raises(ResourceError):
        fit_plan(config, own.dataset, own.plan, limits(1200.0, memory_bytes=10**8), silent)


def test_a_plan_and_a_network_of_other_stages_do_not_go_together() -> None:
    with pytest.raises(ConfigError, match="3 stages and the plan 4"):
        planned_network(UNetConfig(features=(4, 8, 16)), search().plan)
