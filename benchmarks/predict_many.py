"""Many scans in one call: what the call takes beside the network, its memory, and whether it repeats to the byte.

Predicts one scan, then all, then all in reversed order, each as a fresh process with the same runtime and threads. The
wall clock of all must be at most the start-up (wall of the call with one scan, less that scan's own seconds) plus 1.15 times the sum
of the network's seconds; the peak of memory at most 1.1 times that of the scan which takes most by itself; all label maps alike. Exits with 1 otherwise.

Run on quiet cores: ``.venv/bin/python benchmarks/predict_many.py SCAN... --out DIR [--bundle head-neck] [--threads 2]``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from process_cost import spent

MOST_WALL, MOST_MEMORY = 1.15, 1.1
MIB = 2**20


def main() -> int:
    """Measure and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scans", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--bundle", default="head-neck")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    largest = max(options.scans, key=lambda scan: scan.stat().st_size)
    predict([largest], "warm", options)  # graphs and the choice of a runtime are kept from now on
    one_s, one_peak, (one,) = predict([largest], "one", options)
    start_s = one_s - one["seconds"]["total"]
    wall_s, peak, cases = predict(options.scans, "all", options)
    _, _, reversed_cases = predict(options.scans[::-1], "reversed", options)
    network_s = sum(case["seconds"]["network"] for case in cases)
    ratio = (wall_s - start_s) / network_s
    hashes = [{case["id"]: case["output_sha256"] for case in found} for found in (cases, reversed_cases)]
    print(
        f"{len(cases)} scans in {wall_s:.1f} s: start-up {start_s:.1f} s, the rest {ratio:.3f} x the network's {network_s:.1f} s"
    )
    print(
        f"memory {peak / MIB:.0f} MB, one scan {one_peak / MIB:.0f} MB; label maps {'alike' if hashes[0] == hashes[1] else 'DIFFER'}"
    )
    return 0 if ratio <= MOST_WALL and peak <= MOST_MEMORY * one_peak and hashes[0] == hashes[1] else 1


def predict(scans: Sequence[Path], name: str, options: argparse.Namespace) -> tuple[float, float, list[dict[str, Any]]]:
    """Wall clock [s], peak memory [bytes] and the manifest's cases of one call."""
    out = options.out / name
    command = [sys.executable, "-m", "pipelines.cli", "predict", options.bundle, *scans, "--out", out, "--overwrite"]
    wall_s, peak = spent([*command, "--quiet", "--threads", options.threads])
    return wall_s, peak, json.loads((out / "manifest.json").read_text())["cases"]


if __name__ == "__main__":
    sys.exit(main())
