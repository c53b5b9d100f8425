"""The OpenVINO runtime: a network's graph in single precision on the CPU. No torch."""

from __future__ import annotations

import numpy as np
import openvino
from jaxtyping import Float

from medseg.core.errors import CheckpointError
from medseg.core.shapes import BCIJK, BLIJK
from medseg.inference.runtime import OnNumpy


class OpenVinoRuntime(OnNumpy):
    """Runs a graph, compiled for each shape of a batch that comes along: the last batch may hold fewer windows.

    Args:
        graph: An ONNX file; batch and spatial axes are free.
        num_outputs: Logits a voxel.
        num_threads: CPU threads.

    Raises:
        CheckpointError: OpenVINO cannot read the graph.
    """

    def __init__(self, graph: bytes, num_outputs: int, num_threads: int) -> None:
        self.num_outputs = num_outputs
        self._core = openvino.Core()
        self._compiled: dict[tuple[int, ...], openvino.CompiledModel] = {}
        self._properties = {
            "INFERENCE_PRECISION_HINT": "f32",  # it would compute in bfloat16 where the processor can
            "EXECUTION_MODE_HINT": "ACCURACY",
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,  # all threads work on one batch after the other
            "INFERENCE_NUM_THREADS": num_threads,
            "ENABLE_CPU_PINNING": False,  # pinned threads of two processes would meet on the same cores
        }
        try:
            self._model = self._core.read_model(graph)
        except RuntimeError as error:
            raise CheckpointError(f"OpenVINO cannot read the network's graph: {error}"[:1000]) from error

    def __call__(self, windows_BCIJK: Float[np.ndarray, BCIJK]) -> Float[np.ndarray, BLIJK]:
        """Logits of a batch of windows, float32.

        Raises:
            RuntimeError: The graph does not take windows of this shape, or there is too little memory.
        """
        shape = windows_BCIJK.shape
        if shape not in self._compiled:
            self._model.reshape(list(shape))  # shapes that are known let it choose and lay out its kernels once
            self._compiled[shape] = self._core.compile_model(self._model, "CPU", self._properties)
        logits_BCIJK: np.ndarray = self._compiled[shape](windows_BCIJK)[0]  # a copy: the next batch does not change it
        return logits_BCIJK
