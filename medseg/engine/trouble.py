"""What goes wrong in a step and is got over: memory that runs out, and numbers that are not finite."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from medseg.core.errors import ResourceError, TrainingError
from medseg.core.task import Batch, TrainableTask
from medseg.engine.precision import norm_of_gradients
from medseg.engine.seeding import seed_step
from medseg.engine.state import TrainingState

QUIET_STEPS = 1000
"""One step whose loss or gradient is not finite is skipped; a second within this many ends the run. A network that
diverges or a broken case comes back at once; over weeks, two accidents must not cost the run."""

NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "alloc_failed")
"""What torch's RuntimeErrors say when memory has run out: its CPU allocators, CUDA, cuDNN and cuBLAS."""


@dataclass(frozen=True)
class Trouble:
    """Something that went wrong in a step, and was got over.

    Attributes:
        kind: Of its entry in the log.
        message: For people: what happened, where, and what was done.
        values: For the log.
    """

    kind: Literal["nonfinite", "memory"]
    message: str
    values: Mapping[str, Any]


def copied_buffers(network: nn.Module) -> list[Tensor]:
    """A network's buffers as they are now: a forward pass changes running statistics, whatever becomes of its step."""
    return [buffer.clone() for buffer in network.buffers()]


@torch.no_grad()
def restore_buffers(network: nn.Module, buffers: Sequence[Tensor]) -> None:
    """Undo what a forward pass did to them."""
    for buffer, before in zip(network.buffers(), buffers, strict=True):
        buffer.copy_(before)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory has run out, on a GPU or on the CPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in NO_MEMORY)


def use_smaller_parts(state: TrainingState, num_entries: int) -> Trouble:
    """Halve the micro batch, for the rest of the run; the effective batch stays.

    Raises:
        ResourceError: One entry at a time is too much already.
    """
    size = min(state.micro_batch_size or num_entries, num_entries)
    if size == 1:
        raise ResourceError(
            f"one patch alone does not fit into memory (step {state.step + 1}): choose a smaller plan.patch_ijk or "
            "network, or let the planner do it with --memory",
            code="resource.memory",
        )
    state.micro_batch_size = (size + 1) // 2
    message = (
        f"step {state.step + 1}: out of memory with {size} patches at once; it is repeated with "
        f"{state.micro_batch_size}, as are all later steps; the batch stays {num_entries}"
    )
    return Trouble("memory", message, {"micro_batch_size": state.micro_batch_size, "batch_size": num_entries})


def nonfinite(
    task: TrainableTask,
    state: TrainingState,
    batch: Batch,
    figures: Mapping[str, float],
    seed: int,
    device: torch.device,
) -> Trouble:
    """Find which entries of a batch gave a loss or gradient that is not finite, and note it in the state.

    Each entry is run alone. Where none is at fault by itself, or cannot be run alone, all are named.

    Args:
        task, state, batch, seed, device: As in the step that is to be skipped.
        figures: Its ``loss`` and ``grad_norm``.
    """
    origins = [batch.origin(index) for index in range(len(batch))]
    at_fault = [
        origin
        for index, origin in enumerate(origins)
        if not _is_finite_alone(task, state, batch.part(index, index + 1).to(device), seed)
    ]
    what = f"loss is {figures['loss']}"
    if math.isfinite(figures["loss"]):
        what = f"gradient's norm is {figures['grad_norm']}"
    number = state.step + 1
    state.nonfinite.append({"step": number, "what": what, "origins": at_fault or origins})
    message = f"{_told(state.nonfinite[-1])}: this step is skipped"
    return Trouble("nonfinite", message, {"what": what, "origins": at_fault or origins})


def require_recovery(state: TrainingState) -> None:
    """End a run that was not finite twice within :data:`QUIET_STEPS`.

    Raises:
        TrainingError: With all places.
    """
    recent = [entry for entry in state.nonfinite if entry["step"] > state.step - QUIET_STEPS]
    if len(recent) > 1:
        raise TrainingError(
            f"{'; '.join(map(_told, recent))}: look at these cases (medseg check), try a lower learning rate, or "
            "precision fp32",
            code="training.nonfinite",
        )


def _is_finite_alone(task: TrainableTask, state: TrainingState, entry: Batch, seed: int) -> bool:
    """Whether loss and gradient of one entry are finite; fp16's gradients overflow without anybody's fault."""
    buffers = copied_buffers(state.network)
    seed_step(seed, state.step)
    state.optimizer.zero_grad(set_to_none=True)
    try:
        with state.precision.forward():
            loss = task.loss(state.network, entry).total
        if not math.isfinite(float(loss.detach())):
            return False
        if state.precision.expects_overflow:
            return True
        loss.backward()  # type: ignore[no-untyped-call]
        return math.isfinite(float(norm_of_gradients(state.network)))
    except (RuntimeError, ValueError):  # some layers refuse a batch of one: then it cannot be told apart
        return True
    finally:
        state.optimizer.zero_grad(set_to_none=True)
        restore_buffers(state.network, buffers)


def _told(entry: Mapping[str, Any]) -> str:
    return f"the {entry['what']} at step {entry['step']} ({'; '.join(entry['origins'])})"
