"""The ONNX Runtime: a network's graph in single precision on the CPU. No torch."""

from __future__ import annotations

import numpy as np
import onnxruntime
from jaxtyping import Float

from medseg.core.errors import CheckpointError
from medseg.core.shapes import BCIJK, BLIJK
from medseg.inference.runtime import OnNumpy

ONLY_ERRORS = 3
"""Of ONNX Runtime's levels of messages: its warnings speak of its own optimisations."""


class OnnxRuntime(OnNumpy):
    """Runs a graph.

    Args:
        graph: An ONNX file; batch and spatial axes are free.
        num_outputs: Logits a voxel.
        num_threads: CPU threads.

    Raises:
        CheckpointError: ONNX Runtime cannot read the graph.
    """

    def __init__(self, graph: bytes, num_outputs: int, num_threads: int) -> None:
        self.num_outputs = num_outputs
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = num_threads, 1
        options.log_severity_level = ONLY_ERRORS
        # Between two windows the cores are for whoever else computes: here, that is stitching and resolving.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its own exceptions share no type but this
            raise CheckpointError(f"ONNX Runtime cannot read the network's graph: {error}"[:1000]) from error
        self._input = self._session.get_inputs()[0].name

    def __call__(self, windows_BCIJK: Float[np.ndarray, BCIJK]) -> Float[np.ndarray, BLIJK]:
        """Logits of a batch of windows, float32.

        Raises:
            RuntimeError: The graph does not take windows of this shape, or there is too little memory.
        """
        try:
            logits_BCIJK: np.ndarray = self._session.run(None, {self._input: windows_BCIJK})[0]
        except Exception as error:  # its own exceptions share no type but this
            raise RuntimeError(str(error)) from error
        return logits_BCIJK
