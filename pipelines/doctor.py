"""What this machine can do."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from medseg.core.processors import compute_threads
from medseg.inference.runtimes.catalogue import installed_runtimes
from pipelines.outcome import Outcome

PACKAGES = (
    "medseg",
    "torch",
    "monai",
    "openvino",
    "onnxruntime",
    "onnx",
    "numpy",
    "scipy",
    "nibabel",
    "SimpleITK",
    "pydicom",
    "python-gdcm",
    "pydantic",
    "safetensors",
    "matplotlib",
    "tensorboard",
)


def run() -> Outcome:
    """Collect versions, processors, memory, disks, devices and runtimes."""
    torch_finds = _torch_finds() if _version("torch") else {"capability": None, "torch_threads": None, "devices": []}
    devices = torch_finds["devices"]
    result: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "executable": sys.executable,
        "packages": {name: _version(name) for name in PACKAGES},
        "runtimes": installed_runtimes(),
        "cpu": {
            "cores": len(os.sched_getaffinity(0)),
            "capability": torch_finds["capability"],
            "torch_threads": torch_finds["torch_threads"],
            "compute_threads": compute_threads(),
        },
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "disk_free_bytes": shutil.disk_usage(Path.cwd()).free,
        "cuda_devices": devices,
        "precision": {"cuda": ["fp32", "fp16", "bf16"] if devices else [], "cpu": ["fp32"]},
    }
    return Outcome(0, result, "\n".join(_lines(result)))


def _torch_finds() -> dict[str, Any]:
    import torch

    devices = [
        {
            "name": torch.cuda.get_device_name(index),
            "memory_bytes": torch.cuda.get_device_properties(index).total_memory,
        }
        for index in range(torch.cuda.device_count())
    ]
    capability = torch.backends.cpu.get_cpu_capability()
    return {"capability": capability, "torch_threads": torch.get_num_threads(), "devices": devices}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _lines(result: dict[str, Any]) -> list[str]:
    packages = ", ".join(f"{name} {found or 'MISSING'}" for name, found in result["packages"].items())
    cuda = ", ".join(device["name"] for device in result["cuda_devices"]) or "none: training and prediction use the CPU"
    return [
        f"Python {result['python']} on {result['platform']}",
        f"packages: {packages}",
        f"CPU: {result['cpu']['cores']} cores, {result['cpu']['capability']}, {result['cpu']['compute_threads']} threads",
        f"runtimes: {', '.join(f'{name} {found}' for name, found in result['runtimes'].items()) or 'none'}",
        f"memory: {result['memory_bytes'] / 2**30:.1f} GiB, disk free here: {result['disk_free_bytes'] / 2**30:.1f} GiB",
        f"CUDA: {cuda}",
    ]
