"""Which runtimes there are, and which of them are installed; found out without importing any."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Literal, get_args

from medseg.core.errors import PluginError

RuntimeName = Literal["torch", "openvino", "onnx"]
"""What computes the logits: the network as it was trained, or its graph in OpenVINO or ONNX Runtime."""

RUNTIMES: tuple[RuntimeName, ...] = get_args(RuntimeName)

DISTRIBUTIONS: dict[RuntimeName, tuple[str, ...]] = {
    "torch": ("torch",),
    "openvino": ("openvino",),
    "onnx": ("onnxruntime", "onnxruntime-gpu"),
}
"""Packages that bring each."""

TO_INSTALL: dict[RuntimeName, str] = {"torch": "torch", "openvino": "'medseg[openvino]'", "onnx": "'medseg[onnx]'"}
"""What to give to ``pip install``: an extra, or the package where it is an ordinary dependency."""


def version_of(runtime: RuntimeName) -> str | None:
    """The version of an installed runtime; None where it is not installed."""
    for distribution in DISTRIBUTIONS[runtime]:
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return None


def installed_runtimes() -> dict[RuntimeName, str]:
    """The runtimes that are installed, with their versions."""
    return {name: found for name in RUNTIMES if (found := version_of(name)) is not None}


def require(runtime: RuntimeName, what_for: str = "--runtime") -> str:
    """The version of a runtime that has to be there.

    Args:
        runtime: Its name.
        what_for: What needs it, for the message.

    Raises:
        PluginError: It is not installed.
    """
    found = version_of(runtime)
    if found is None:
        there = ", ".join(installed_runtimes()) or "none"
        raise PluginError(
            f"{what_for} needs {DISTRIBUTIONS[runtime][0]}, which is not installed: pip install {TO_INSTALL[runtime]}; "
            f"installed runtimes: {there}",
            code="plugin.runtime",
        )
    return found
