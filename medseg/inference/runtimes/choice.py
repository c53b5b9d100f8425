"""Which runtime predicts: measured once on this machine with this model, and kept in the user's cache folder.

No runtime is imported before it is known to be needed: torch alone takes seconds.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from medseg.core.environment import cache_folder, named_runtime
from medseg.core.errors import CheckpointError, ConfigError, MedsegError, PluginError
from medseg.core.processors import compute_threads, processor_identity
from medseg.core.progress import Listener, Progress, silent
from medseg.core.version import VERSION
from medseg.inference.ensemble import Ensemble
from medseg.inference.mirroring import with_mirrors
from medseg.inference.runtime import Runtime, averaged
from medseg.inference.runtimes.catalogue import RUNTIMES, TO_INSTALL, RuntimeName, installed_runtimes, require
from medseg.inference.runtimes.graphs import graphs_of, has_graphs
from medseg.io.atomic import write_json_atomically

Wanted = Literal["auto", "torch", "openvino", "onnx"]
"""A runtime, or whichever is fastest here."""

TOLERANCE = 1e-4
"""Largest difference of a runtime's logits from those that the bundle carries, relative to the largest of these."""

FOLDER = "runtimes"
"""In the cache folder."""

NUM_WINDOWS = 2
"""That are timed after a first one; the faster counts."""

LONG_WINDOW_S = 3.0
"""After a window that takes longer no further one is timed."""

GPU_DRIVERS = ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/nvgpu", "/dev/nvhost-gpu", "/dev/dxg", "/dev/kfd")
"""Without one of these (NVIDIA, Jetson, WSL, ROCm) there is no GPU, and torch need not be imported to find out."""


@dataclass(frozen=True)
class Choice:
    """What computes the logits.

    Attributes:
        runtime: By name.
        version: Of its package.
        device: Of torch: cpu, cuda, cuda:N.
        num_threads: CPU threads.
        deviation: Largest difference from the logits that the bundle carries, relative to the largest of these; None: not compared,
            for it is torch, which they come from.
    """

    runtime: RuntimeName
    version: str
    device: str
    num_threads: int
    deviation: float | None = None

    @property
    def title(self) -> str:
        """Name and version."""
        return f"{self.runtime} {self.version}"


@dataclass
class Findings:
    """What is known of the runtimes with one model on this machine, each named with its version.

    Attributes:
        path: Where it is kept; None: nowhere.
        deviation: From the logits that the bundles carry; at most the tolerance.
        seconds_per_window: Of the plan's window.
        unusable: Why it cannot run this model, or not exactly enough.
        failed_now: Why it could not be tried; not kept, for it may go away.
    """

    path: Path | None
    deviation: dict[str, float] = field(default_factory=dict)
    seconds_per_window: dict[str, float] = field(default_factory=dict)
    unusable: dict[str, str] = field(default_factory=dict)
    failed_now: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, ensemble: Ensemble, num_threads: int) -> Findings:
        """Of earlier processes; what is damaged is measured again."""
        folder = cache_folder()
        if folder is None:
            return cls(None)
        key = hashlib.sha256(f"{ensemble.hash} {processor_identity()} {num_threads} {VERSION}".encode()).hexdigest()
        findings = cls(folder / FOLDER / f"{key[:32]}.json")
        with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
            assert findings.path is not None
            known = json.loads(findings.path.read_text(encoding="utf-8"))
            deviation, seconds = (
                {name: float(value) for name, value in known[part].items()} for part in ("deviation", "seconds")
            )
            unusable = {name: str(reason) for name, reason in known["unusable"].items()}
            return cls(findings.path, deviation, seconds, unusable)
        return findings

    def look_at(self, ensemble: Ensemble, choice: Choice, *, with_time: bool = False) -> None:
        """Compare a runtime's logits with those that the bundles carry, and time it; what it cannot do is noted.

        Raises:
            CheckpointError: torch cannot load the weights.
            PluginError: There is no graph for it, and none can be made.
        """
        try:
            members = _of_bundles(ensemble, choice)
            if choice.runtime != "torch":  # whose logits the bundles carry
                self.deviation[choice.title] = _tolerable_deviation(members, ensemble, choice)
            if with_time:
                first = ensemble.description
                shape = (len(first.modalities), *first.plan.patch_ijk)
                self.seconds_per_window[choice.title] = _seconds_per_window(averaged(members), shape)
        except CheckpointError as error:
            if choice.runtime == "torch":
                raise
            self.unusable[choice.title] = f"{choice.title} cannot run this model: {error}"
        except (RuntimeError, MemoryError, OSError, ImportError) as error:
            # Memory is short now, or the package is badly installed: that may go away.
            self.failed_now[choice.title] = f"{choice.title} could not run here: {error or type(error).__name__}"[:500]

    def keep(self) -> None:
        """Write it for the next process; where that is not possible, it measures again."""
        document = {
            "deviation": self.deviation,
            "seconds": self.seconds_per_window,
            "unusable": self.unusable,
        }
        if self.path is not None:
            with suppress(MedsegError, OSError):
                write_json_atomically(self.path, document, overwrite=True)


def choose_runtime(
    ensemble: Ensemble,
    wanted: Wanted = "auto",
    device: str = "auto",
    num_threads: int | None = None,
    listener: Listener = silent,
) -> Choice:
    """The runtime that was asked for, or the fastest of those that are installed and exact.

    Args:
        ensemble: What predicts.
        wanted: Its name, or ``auto``, for which ``MEDSEG_RUNTIME`` may name one.
        device: auto, cpu, cuda or cuda:N; other runtimes than torch use the CPU only.
        num_threads: CPU threads; None: one for each core.
        listener: Hears what was measured.

    Raises:
        ConfigError: The device does not exist, or the runtime cannot use it.
        PluginError: It is not installed, or there is no graph for it and none can be made.
        CheckpointError: It cannot run this model, or not exactly enough.
    """
    threads = num_threads or compute_threads()
    if wanted == "auto" and (named := named_runtime()) is not None:
        if named not in RUNTIMES:
            raise ConfigError(f"expected one of {', '.join(RUNTIMES)} in MEDSEG_RUNTIME, found '{named}'")
        wanted = named
    if wanted in ("openvino", "onnx"):
        if device not in ("auto", "cpu"):
            raise ConfigError(f"--runtime {wanted} computes on the CPU, not on '{device}': leave out one of both")
        return _verified(ensemble, wanted, threads)
    where = _resolved(device)
    if wanted == "torch" or where != "cpu":
        return Choice("torch", require("torch", "--runtime torch"), where, threads)
    return _fastest(ensemble, threads, listener)


def open_runtime(ensemble: Ensemble, choice: Choice, *, mirrored: bool = False) -> Runtime:
    """The networks, ready to run; with the mirror images of each window, if asked for.

    Raises:
        CheckpointError: The runtime cannot run them.
        ConfigError: A network has not seen mirrored images.
        PluginError: There is no graph, and what makes it is not installed.
    """
    members = _of_bundles(ensemble, choice)
    return averaged(with_mirrors(members, ensemble.descriptions) if mirrored else members)


def _of_bundles(ensemble: Ensemble, choice: Choice) -> list[Runtime]:
    """The networks of each bundle, averaged."""
    pairs = zip(ensemble.descriptions, ensemble.bundles, strict=True)
    if choice.runtime == "torch":
        from medseg.inference.runtimes.torch import choose_device, load_runtime, use_threads

        use_threads(choice.num_threads)
        device = choose_device(choice.device)
        return [load_runtime(description, bundle.weights, device) for description, bundle in pairs]
    make = _graph_runtime(choice.runtime)
    return [
        averaged([make(graph, description.num_outputs, choice.num_threads) for graph in graphs_of(bundle, description)])
        for description, bundle in pairs
    ]


def _graph_runtime(name: RuntimeName) -> Callable[[bytes, int, int], Runtime]:
    """What makes a runtime of a graph, a number of outputs and one of threads."""
    if name == "openvino":
        from medseg.inference.runtimes.openvino import OpenVinoRuntime

        return OpenVinoRuntime
    from medseg.inference.runtimes.onnx import OnnxRuntime

    return OnnxRuntime


def _verified(ensemble: Ensemble, name: RuntimeName, num_threads: int) -> Choice:
    """A runtime other than torch that was asked for."""
    choice = Choice(name, require(name, f"--runtime {name}"), "cpu", num_threads)
    findings = Findings.of(ensemble, num_threads)
    if choice.title not in findings.deviation and choice.title not in findings.unusable:
        findings.look_at(ensemble, choice)
        findings.keep()
    if reason := findings.unusable.get(choice.title) or findings.failed_now.get(choice.title):
        raise CheckpointError(reason, code="runtime.unusable")
    return replace(choice, deviation=findings.deviation[choice.title])


def _fastest(ensemble: Ensemble, num_threads: int, listener: Listener) -> Choice:
    with_graphs = all(has_graphs(bundle) for bundle in ensemble.bundles)
    choices = [
        Choice(name, version, "cpu", num_threads)
        for name, version in installed_runtimes().items()
        if name == "torch" or with_graphs
    ]
    if not choices:
        raise PluginError(
            f"no runtime is installed that can run this bundle: pip install {TO_INSTALL['openvino']}, or torch",
            code="plugin.runtime",
        )
    if len(choices) == 1:
        only = choices[0]
        return only if only.runtime == "torch" else _verified(ensemble, only.runtime, num_threads)
    findings = Findings.of(ensemble, num_threads)
    unknown = [
        choice
        for choice in choices
        if choice.title not in findings.unusable and choice.title not in findings.seconds_per_window
    ]
    for done, choice in enumerate(unknown):
        listener(Progress("trying runtimes", done, len(unknown)))
        findings.look_at(ensemble, choice, with_time=True)
        findings.keep()
    usable = [choice for choice in choices if choice.title in findings.seconds_per_window]
    if not usable:
        reasons = [*findings.unusable.values(), *findings.failed_now.values()]
        raise CheckpointError("; ".join(reasons), code="runtime.unusable")
    best = min(usable, key=lambda choice: findings.seconds_per_window[choice.title])
    if unknown:
        times = ", ".join(f"{choice.title} {findings.seconds_per_window[choice.title]:.3g} s" for choice in usable)
        listener(Progress("runtime", 0, None, message=f"predicting with {best.title}; a window takes {times}"))
    return replace(best, deviation=findings.deviation.get(best.title))


def _tolerable_deviation(members: Sequence[Runtime], ensemble: Ensemble, choice: Choice) -> float:
    """Largest difference from the logits that the bundles carry, relative to the largest of these."""
    largest = 0.0
    for runtime, bundle in zip(members, ensemble.bundles, strict=True):
        expected = bundle.probe["logits"]
        found = runtime.to_numpy(runtime(bundle.probe["image"]))
        largest = np.maximum(largest, np.abs(found - expected).max() / np.abs(expected).max())  # keeps NaN
    if not largest <= TOLERANCE:
        raise CheckpointError(
            f"its logits differ from those that the bundle carries by {largest:.1e} of the largest, and "
            f"{TOLERANCE:.0e} is allowed: use another --runtime"
        )
    return float(largest)


def _seconds_per_window(runtime: Runtime, shape: Sequence[int]) -> float:
    """Of a window of random numbers, after a first one that lays out kernels and memory."""
    window = np.random.default_rng(0).standard_normal((1, *shape), dtype=np.float32)
    runtime(window)
    took_s = []
    for _ in range(NUM_WINDOWS):
        began = time.perf_counter()
        runtime.to_numpy(runtime(window))
        took_s.append(time.perf_counter() - began)
        if took_s[-1] > LONG_WINDOW_S:
            break
    return min(took_s)


def _resolved(device: str) -> str:
    """``auto`` as the device that it stands for; others as they are, if they exist."""
    may_be_gpu = "torch" in installed_runtimes() and any(Path(path).exists() for path in GPU_DRIVERS)
    if device == "cpu" or (device == "auto" and not may_be_gpu):
        return "cpu"
    require("torch", f"--device {device}")
    from medseg.inference.runtimes.torch import choose_device

    return str(choose_device(device))
