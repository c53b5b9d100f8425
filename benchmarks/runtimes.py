"""OpenVINO and ONNX Runtime against torch's eager network on the CPU: time of a window, and whether they decide alike.

Networks: the bundled model, and a U-Net of 32 to 320 channels with random weights, as nnU-Net plans for 3D CT. The same windows
of random numbers go through each runtime in turn; medians of the rounds. Exits with 1 where OpenVINO takes more than .65
of torch's time, or fewer than 99.99 % of the voxels have the same largest logit.

Run on quiet cores: ``.venv/bin/python benchmarks/runtimes.py [--threads 2] [--rounds 5]``.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import replace
from typing import Any

import numpy as np

from medseg.inference.description import ModelDescription, describe
from medseg.inference.ensemble import Ensemble, ensemble_of
from medseg.inference.runtimes.catalogue import installed_runtimes
from medseg.inference.runtimes.choice import Choice, open_runtime
from medseg.io.bundle import Bundle, read_bundle

MOST_TIME, LEAST_EQUAL = 0.65, 0.9999

STRIDES = [(1, 1, 1), *[(2, 2, 2)] * 5]
FEATURES = (32, 64, 128, 256, 320, 320)
PATCH = (96, 96, 96)


def main() -> int:
    """Measure both networks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    bundled = read_bundle("head-neck")
    kept = [
        judged("head-neck", ensemble_of([bundled]), options),
        judged("U-Net 32 to 320, 96 cubed", wide_unet(bundled), options),
    ]
    return 0 if all(kept) else 1


def wide_unet(bundled: Bundle) -> Ensemble:
    """The bundled model's description with another network, and random weights."""
    import torch

    from medseg.models.build import build_model

    document = describe(bundled).model_dump(mode="json")
    plan = {**document["plan"], "strides": STRIDES, "patch_ijk": PATCH}
    network = {"kind": "unet", "features": FEATURES, "stem_stride": 1}
    description = ModelDescription.model_validate({**document, "plan": plan, "network": network})
    torch.manual_seed(0)
    model = build_model(description.network, 1, description.num_outputs, description.plan.strides, None)
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    return Ensemble((replace(bundled, weights=(weights,), graphs=(), hash="random"),), (description,))


def judged(name: str, ensemble: Ensemble, options: argparse.Namespace) -> bool:
    """Whether OpenVINO keeps the bounds."""
    shape = (1, len(ensemble.description.modalities), *ensemble.description.plan.patch_ijk)
    window = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    runtimes = {
        runtime: open_runtime(ensemble, Choice(runtime, version, "cpu", options.threads))
        for runtime, version in installed_runtimes().items()
    }
    logits = {runtime: np.array(run.to_numpy(run(window))) for runtime, run in runtimes.items()}
    took: dict[str, list[float]] = {runtime: [] for runtime in runtimes}
    for _ in range(options.rounds):
        for runtime, run in runtimes.items():
            took[runtime].append(seconds(run, window))
    print(f"{name}, windows of {shape[2:]}, {options.threads} threads")
    for runtime in runtimes:
        equal = float((logits[runtime].argmax(axis=1) == logits["torch"].argmax(axis=1)).mean())
        ratio = statistics.median(took[runtime]) / statistics.median(took["torch"])
        deviation = np.abs(logits[runtime] - logits["torch"]).max() / np.abs(logits["torch"]).max()
        print(
            f"  {runtime:9} {statistics.median(took[runtime]):7.3f} s  {ratio:.2f} of torch  same {equal:.6f}  off {deviation:.1e}"
        )
        if runtime == "openvino":
            kept = ratio <= MOST_TIME and equal >= LEAST_EQUAL
    return kept


def seconds(run: Any, window: np.ndarray) -> float:
    """Of one window."""
    began = time.perf_counter()
    run.to_numpy(run(window))
    return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(main())
