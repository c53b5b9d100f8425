"""A network as an ONNX graph, which OpenVINO and ONNX Runtime take. Made where torch is."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from medseg.core.errors import CheckpointError, PluginError
from medseg.inference.description import ModelDescription
from medseg.inference.runtimes.torch import load_network

OPSET = 17
"""Of ONNX: the newest that torch's tracing exporter is tested with, and old enough for every runtime."""

TRACED_STRIDES = 3
"""The window that is traced, in strides of the network: not the probe's two, so that a size which was frozen shows there."""

WITHOUT_GRAPH = ("swin_unetr",)
"""Tracing its attention takes minutes, and leaves sizes in the graph that depend on the window."""

WINDOWS, LOGITS = "windows", "logits"

FREE_AXES = {0: "batch", 2: "i", 3: "j", 4: "k"}
"""Axes of windows and logits whose size is not fixed."""


def make_graph(description: ModelDescription, weights: Mapping[str, np.ndarray]) -> bytes:
    """The ONNX file of a network: windows in, logits out, any number of windows of any size that its strides divide.

    Weights that half precision holds exactly, as those of a bundle stored so, take two bytes.

    Args:
        description: What the network is.
        weights: As they lie in the bundle.

    Raises:
        CheckpointError: The weights do not fit the network, or the network cannot be written as a graph.
        PluginError: The package onnx is not installed.
    """
    if description.network.kind in WITHOUT_GRAPH:
        raise CheckpointError(
            f"a network of kind {description.network.kind} has no graph for other runtimes: use --runtime torch",
            code="runtime.graph",
        )
    try:
        import onnx  # noqa: F401  # torch's exporter needs it, and says so less clearly
    except ImportError:
        raise PluginError(
            "making a network's graph needs the package onnx: pip install 'medseg[openvino]'", code="plugin.runtime"
        ) from None
    network = _with_instance_norm(load_network(description, weights))
    size = np.prod(np.array(description.plan.strides), axis=0) * TRACED_STRIDES
    windows = torch.zeros(2, len(description.modalities), *size.tolist())
    packed = io.BytesIO()
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of becoming a constant what is one, and that the exporter is the older
            # The newer exporter takes forty times as long, and cannot free the axes of residual networks.
            torch.onnx.export(
                network,
                (windows,),
                packed,  # type: ignore[arg-type]  # the older exporter takes files, which its types do not say
                dynamo=False,
                opset_version=OPSET,
                input_names=[WINDOWS],
                output_names=[LOGITS],
                dynamic_axes={WINDOWS: FREE_AXES, LOGITS: FREE_AXES},
            )
    except Exception as error:  # it has no one type for what it cannot do
        raise CheckpointError(
            f"a network of kind {description.network.kind} cannot be written as a graph for other runtimes, use "
            f"--runtime torch: {error}"[:1000],
            code="runtime.graph",
        ) from error
    return _with_small_weights(packed.getvalue())


def _with_instance_norm(network: nn.Module) -> nn.Module:
    """Group normalisation of one channel a group named as what it is: runtimes have a faster way for that."""
    for name, module in network.named_children():
        if isinstance(module, nn.GroupNorm) and module.num_groups == module.num_channels and module.affine:
            norm = nn.InstanceNorm3d(module.num_channels, eps=module.eps, affine=True)
            norm.weight, norm.bias = module.weight, module.bias
            setattr(network, name, norm.eval())
        else:
            _with_instance_norm(module)
    return network


def _with_small_weights(graph: bytes) -> bytes:
    """The same graph; weights that half precision holds exactly are kept so, and widened when it is loaded."""
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load_from_string(graph)
    widened = []
    for tensor in model.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            halves = values.astype(np.float16)
        if np.array_equal(halves.astype(np.float32), values):
            name = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(halves, f"{name}.half"))
            widened.append(helper.make_node("Cast", [f"{name}.half"], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*widened, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    packed: bytes = model.SerializeToString()
    return packed
