"""What a config says of training itself. Torch-free."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from medseg.core.config import ConfigBase


class StepsLength(ConfigBase):
    """Train for a number of steps."""

    kind: Literal["steps"] = "steps"
    num_steps: int = Field(2000, ge=1)
    """Steps of the whole schedule."""


class BudgetLength(ConfigBase):
    """Train as long as a time allows: the machine is measured once, then the number of steps is frozen in plan.json."""

    kind: Literal["budget"] = "budget"
    budget_s: float = Field(1200.0, gt=0)
    """Wall clock of the whole command, from its start to its report [s]; --budget 20m sets it."""


Length = Annotated[StepsLength | BudgetLength, Field(discriminator="kind")]


class AdamWConfig(ConfigBase):
    """Adam with decoupled weight decay."""

    kind: Literal["adamw"] = "adamw"
    learning_rate: float = Field(3e-3, gt=0)
    """Highest learning rate, reached after the warm-up."""
    weight_decay: float = Field(1e-2, ge=0)
    """Decoupled weight decay."""


class SGDConfig(ConfigBase):
    """Stochastic gradient descent with Nesterov momentum: nnU-Net's choice for long runs."""

    kind: Literal["sgd"] = "sgd"
    learning_rate: float = Field(1e-2, gt=0)
    """Highest learning rate, reached after the warm-up."""
    momentum: float = Field(0.99, ge=0, lt=1)
    """Nesterov momentum."""
    weight_decay: float = Field(3e-5, ge=0)
    """L2 penalty."""


class MuonConfig(ConfigBase):
    """Muon for the weights between hidden layers, AdamW for the others: fewer steps for the same."""

    kind: Literal["muon"] = "muon"
    learning_rate: float = Field(3e-3, gt=0)
    """Highest learning rate, reached after the warm-up; AdamW's serves."""
    weight_decay: float = Field(1e-2, ge=0)
    """Decoupled weight decay."""
    momentum: float = Field(0.95, ge=0, lt=1)
    """Nesterov momentum of Muon's part."""


Optimizer = Annotated[AdamWConfig | MuonConfig | SGDConfig, Field(discriminator="kind")]


class ScheduleConfig(ConfigBase):
    """How the learning rate runs over the steps."""

    warmup_steps: int = Field(20, ge=0)
    """Steps of linear rise from zero."""
    power: float = Field(0.9, gt=0)
    """Exponent of the polynomial decay to zero at the last step."""


class ValidationConfig(ConfigBase):
    """When and on what the network is tried during training."""

    num_validations: int = Field(5, ge=1)
    """Validations of the whole run, evenly spread; the last is at the last step."""
    max_cases: int = Field(6, ge=1)
    """Validation cases used each time, the first in the plan's order; evaluation afterwards uses them all."""
    patience: int | None = Field(None, ge=1)
    """Stop after this many validations without a better mean; null: never."""


class TrainerConfig(ConfigBase):
    """The training loop."""

    length: Length = BudgetLength()
    """How long: kind steps or budget."""
    batch_size: int | None = Field(None, ge=1, le=1024)
    """Patches a step; null: the planner chooses."""
    optimizer: Optimizer = AdamWConfig()
    """kind adamw, muon or sgd."""
    schedule: ScheduleConfig = ScheduleConfig()
    """The learning rate over the steps."""
    clip_norm: float | None = Field(12.0, gt=0)
    """Largest gradient norm; null: no clipping."""
    ema_decay: float | None = Field(0.999, gt=0, lt=1)
    """Share of the averaged weights that stays at each step, less in short runs; they are what is kept. null: no average."""
    micro_batch_size: int | None = Field(None, ge=1)
    """Patches at once through the network, gradients averaged; null: the whole batch, halved when memory runs out."""
    precision: Literal["fp32", "bf16", "fp16"] | None = None
    """Arithmetic of the forward pass; fp16 scales the loss. null: fp16 on GPUs; on CPUs fp32, and with a budget bf16 where a try is faster."""
    validation: ValidationConfig = ValidationConfig()
    """When and on what the network is tried."""
    checkpoint_every: int = Field(100, ge=1)
    """Steps between two checkpoints."""
    num_threads: int | None = Field(None, ge=1)
    """Threads of the network on the CPU; null: one for each core."""
    device: str = "auto"
    """auto (CUDA where there is one), cpu, cuda or cuda:N."""
    seed: int = Field(0, ge=0)
    """Of weights, patches, augmentation and the split."""
