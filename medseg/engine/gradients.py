"""The gradients of a batch: part by part where it does not fit into memory at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from medseg.core.task import Batch, TrainableTask
from medseg.engine.seeding import seed_step
from medseg.engine.state import TrainingState
from medseg.engine.trouble import Trouble, is_out_of_memory, restore_buffers, use_smaller_parts

Figures = dict[str, float]


def gradients_within_memory(
    task: TrainableTask,
    state: TrainingState,
    batch: Batch,
    buffers: Sequence[Tensor],
    seed: int,
    device: torch.device,
) -> tuple[Figures, list[Trouble]]:
    """The gradients of a step, in smaller parts where memory runs out.

    An attempt that failed leaves nothing behind: no gradient, no running statistic, no random number drawn.

    Args:
        task, state, batch, device: Of the step.
        buffers: Of the network before the step.
        seed: Of the run.

    Returns:
        ``loss``, its terms and ``grad_norm``; and every time that memory ran out.

    Raises:
        ResourceError: Not even one entry fits.
    """
    troubles: list[Trouble] = []
    while True:
        seed_step(seed, state.step)
        state.optimizer.zero_grad(set_to_none=True)
        try:
            return gradients(task, state, batch, device), troubles
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Only here, behind the except block, does the traceback no longer hold the activations.
        state.optimizer.zero_grad(set_to_none=True)
        restore_buffers(state.network, buffers)
        if device.type == "cuda":
            torch.cuda.empty_cache()
        troubles.append(use_smaller_parts(state, len(batch)))


def gradients(task: TrainableTask, state: TrainingState, batch: Batch, device: torch.device) -> Figures:
    """Forward and backward pass. The loss is the mean over the parts, each weighed by its number of entries."""
    size = state.micro_batch_size or len(batch)
    figures: dict[str, Tensor] = {}
    for first in range(0, len(batch), size):
        last = min(first + size, len(batch))
        part = batch if last - first == len(batch) else batch.part(first, last)
        with state.precision.forward():
            loss = task.loss(state.network, part.to(device))
        share = (last - first) / len(batch)
        state.precision.backward(loss.total if share == 1 else loss.total * share)
        for name, term in {"loss": loss.total, **loss.terms}.items():
            weighed = term.detach().float() * share
            figures[name] = figures[name] + weighed if name in figures else weighed
    figures["grad_norm"] = state.precision.gradient_norm(state.network, state.optimizer).float()
    # One look at the device for all of them: each would wait until everything before it is computed.
    return dict(zip(figures, torch.stack(list(figures.values())).tolist(), strict=True))
