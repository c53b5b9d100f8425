"""A machine in numbers: how long a training step takes on it, and how much memory training needs.

Both are sums of a few terms that grow with what a network costs, see :mod:`medseg.models.cost`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from medseg.core.errors import ConfigError
from medseg.models.cost import NetworkCost

PrecisionName = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class Step:
    """What one training step works through.

    Attributes:
        patch: Cost of the network for one patch, forward.
        batch_size: Patches.
    """

    patch: NetworkCost
    batch_size: int

    @property
    def amounts(self) -> np.ndarray:
        """Multiply-adds, bytes saved, voxels, parameters, and one: what each term of :class:`StepTime` multiplies."""
        cost, batch = self.patch, self.batch_size
        voxels = batch * cost.num_voxels
        return np.array([batch * cost.macs, batch * cost.saved_bytes, voxels, cost.num_parameters, 1.0])


@dataclass(frozen=True)
class StepTime:
    """Seconds of a training step: forward, backward, update, and the loader where it holds the network up.

    Attributes:
        per_mac: Of the forward pass; the backward pass, which does twice as much, is in it [s].
        per_saved_byte: Normalisation, activations, concatenation: bound by memory, not arithmetic [s].
        per_voxel: Loading, augmentation, and the loss [s].
        per_parameter: Optimiser and averaging [s].
        fixed: Of every step [s].
    """

    per_mac: float
    per_saved_byte: float
    per_voxel: float
    per_parameter: float
    fixed: float

    def seconds(self, step: Step) -> float:
        """Of one step [s]."""
        return float(step.amounts @ self.coefficients)

    @property
    def coefficients(self) -> np.ndarray:
        """In the order of :attr:`Step.amounts`."""
        return np.array([self.per_mac, self.per_saved_byte, self.per_voxel, self.per_parameter, self.fixed])


USUAL_CPU = StepTime(per_mac=2.0e-11, per_saved_byte=1.9e-9, per_voxel=1.0e-7, per_parameter=4e-9, fixed=0.004)
"""Two cores of a 2024 server (AVX-512) in fp32, from 16 U-Nets of 8 to 32 features at 32^3 to 128x128x96 voxels
(`benchmarks/planner_predictions.py --fit`): root mean square error 12 %. Only how the terms compare is believed; how fast
this machine is, the probe says."""

TRUST_IN_USUAL = 0.03
"""How much one term's departure from the usual, in parts of itself, weighs beside one measurement's relative error."""


def fit_step_time(measured: Sequence[tuple[Step, float]], usual: StepTime = USUAL_CPU) -> StepTime:
    """The step times of a machine from a few measurements; with none, the usual ones.

    Least squares of relative errors, coefficients not negative, drawn towards the usual proportions: with three
    measurements of five terms, what they do not tell apart stays as usual.

    Args:
        measured: Steps, each with its seconds.
        usual: Of this kind of machine.
    """
    from scipy.optimize import nnls

    if not measured:
        return usual
    amounts = np.array([step.amounts for step, _ in measured])
    seconds = np.array([spent for _, spent in measured])
    expected = usual.coefficients * float(np.exp(np.mean(np.log(seconds / (amounts @ usual.coefficients)))))
    pull = np.sqrt(TRUST_IN_USUAL)
    matrix = np.vstack([amounts * expected / seconds[:, None], pull * np.eye(len(expected))])
    target = np.concatenate([np.ones(len(seconds)), np.full(len(expected), pull)])
    factors, _ = nnls(matrix, target)
    return StepTime(*(expected * factors))


@dataclass(frozen=True)
class Machine:
    """Where training will run.

    Attributes:
        name: For people.
        device: ``cpu`` or ``cuda``.
        step_time: How fast it is.
        memory_bytes: What training may take: of a GPU, or on the CPU of this process.
        program_bytes: What Python, torch and its context take before there is a network.
        precision: Arithmetic that suits it.
    """

    name: str
    device: Literal["cpu", "cuda"]
    step_time: StepTime
    memory_bytes: int
    program_bytes: int
    precision: PrecisionName

    def memory(self, step: Step, num_moments: int) -> dict[str, float]:
        """Peak memory of training steps by what takes it, prepared cases left out [bytes].

        Args:
            step: The largest step.
            num_moments: Numbers that the optimiser keeps for each weight.
        """
        cost, batch = step.patch, step.batch_size
        share = 1.0 if self.precision == "fp32" else 0.5
        work = WORKSPACE[self.device]
        terms = {
            "program": float(self.program_bytes),
            "weights, gradients, optimiser, average": cost.num_parameters * 4.0 * (3 + num_moments),
            "activations": batch * cost.saved_bytes * share,
            "workspace": work.fixed + work.per_largest_byte * batch * cost.largest_bytes * share,
            "loss": work.per_output_byte * batch * cost.output_bytes,
        }
        if self.device == "cpu":
            terms["checkpoint being written"] = cost.num_parameters * 4.0 * (2 + num_moments)
        return terms


@dataclass(frozen=True)
class Workspace:
    """Memory of a step that is neither weights nor saved activations.

    Attributes:
        fixed: Buffers of the libraries [bytes].
        per_largest_byte: Copies of the largest activation: gradients under way, and other layouts for the convolution.
        per_output_byte: Copies of the logits in fp32: probabilities, targets, gradients.
    """

    fixed: float
    per_largest_byte: float
    per_output_byte: float


WORKSPACE = {
    "cpu": Workspace(fixed=18e6, per_largest_byte=2.9, per_output_byte=7.8),
    "cuda": Workspace(fixed=500e6, per_largest_byte=3.0, per_output_byte=5.0),
}
"""CPU: least squares over fifteen U-Nets (``benchmarks/planner_predictions.py --fit``); this part alone within 12 %, the
largest error 22 %. Some of it is what the allocator cannot use again. CUDA, whose allocator is torch's own: five copies of the logits in the
loss, as counted in the code; half a gigabyte is what cuDNN's heuristics take for 3D convolutions. Not measured."""


@dataclass(frozen=True)
class Profile:
    """A GPU that is not here, so that a plan for it can be made.

    Attributes:
        memory_bytes: On the card.
        macs_per_s: Multiply-adds that 3D convolutions in fp16 reach, not what the data sheet says.
        bytes_per_s: Of its memory.
    """

    memory_bytes: int
    macs_per_s: float
    bytes_per_s: float


PROFILES = {
    "gpu-8g": Profile(8 * 2**30, 5e12, 0.45e12),
    "gpu-12g": Profile(12 * 2**30, 6e12, 0.4e12),
    "gpu-24g": Profile(24 * 2**30, 12e12, 0.94e12),
    "gpu-80g": Profile(80 * 2**30, 16e12, 2.0e12),
}
"""Memory and bandwidth as the data sheets of an RTX 2080, 3060, 3090 and A100 have them. Arithmetic from nnU-Net's own timings
(250 steps of two 128^3 patches, 32 to 320 features, 2.8e12 multiply-adds each with the backward pass): about 55 s on an
A100, 160 s on an RTX 2080 Ti; the others between, by their tensor cores."""

GPU_PROGRAM_BYTES = 600_000_000
"""CUDA context and torch's kernels on a GPU."""

PASSES = 12
"""Times that a saved activation is read or written in a step: convolution, normalisation, activation, forward and back."""

GPU_LOADER_S_PER_VOXEL = 2e-8
"""Loading and augmentation hidden behind the network by the loader's processes, a voxel [s]."""


def profile(name: str) -> Machine:
    """A machine that is not here.

    Raises:
        ConfigError: There is no profile of this name.
    """
    if name not in PROFILES:
        raise ConfigError(f"there is no profile '{name}'; there are {', '.join(PROFILES)}")
    card = PROFILES[name]
    time = StepTime(
        per_mac=3 / card.macs_per_s,  # the backward pass does twice what the forward pass does
        per_saved_byte=PASSES / 2 / card.bytes_per_s,  # half precision
        per_voxel=GPU_LOADER_S_PER_VOXEL,
        per_parameter=48 / card.bytes_per_s,  # weights, gradients, moments and average, read and written
        fixed=0.01,
    )
    return Machine(name, "cuda", time, card.memory_bytes, GPU_PROGRAM_BYTES, "fp16")
