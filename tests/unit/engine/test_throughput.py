from __future__ import annotations

import time

import pytest
import torch

from medseg.core.task import StepLoss
from medseg.data.plan import Plan
from medseg.engine.config import StepsLength, TrainerConfig
from medseg.engine.throughput import faster_precision, planned_trainer, with_precision

CPU = torch.device("cpu")
PLAN = Plan(spacing_ijk_mm=(1, 1, 1), patch_ijk=(8, 8, 8), strides=((1, 1, 1),), normalisation=(), batch_size=8)


def slow_in(task, dtype: torch.dtype):
    """The task, on a machine where one arithmetic takes 20 ms a step longer."""
    loss = task.loss

    def slowed(model, batch) -> StepLoss:
        time.sleep(0.02 * (torch.is_autocast_enabled("cpu") == (dtype == torch.bfloat16)))
        return loss(model, batch)

    task.loss = slowed
    return task


@pytest.mark.parametrize(("slow", "chosen"), [(torch.bfloat16, "fp32"), (torch.float32, "bf16")])
def test_a_cpu_computes_in_what_is_faster_on_it(line_task, slow, chosen) -> None:
    task = slow_in(line_task(), slow)
    assert faster_precision(task, TrainerConfig(), CPU) == chosen
    plan = with_precision(task, PLAN, TrainerConfig(), CPU)
    assert plan.precision == planned_trainer(TrainerConfig(), plan).precision == chosen


def test_what_the_plan_or_the_config_says_is_not_tried(line_task) -> None:
    untouched = line_task()
    given = PLAN.model_copy(update={"precision": "bf16"})
    assert with_precision(untouched, given, TrainerConfig(), CPU) is given
    assert with_precision(untouched, PLAN, TrainerConfig(precision="fp32"), CPU) is PLAN
    assert faster_precision(untouched, TrainerConfig(), torch.device("cuda")) == "fp16"
    counted = TrainerConfig(length=StepsLength(num_steps=5))
    assert with_precision(untouched, PLAN, counted, CPU) is PLAN, "no result depends on a timing"
    assert with_precision(untouched, PLAN, counted, torch.device("cuda")).precision == "fp16"
    assert untouched.sizes == []
