"""Freed memory stays: measured by the page faults of a process that allocates the same blocks again."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

CODE = """
import resource, torch
from medseg.engine.allocator import keep_freed_memory
torch.set_num_threads(1)
keep_freed_memory()

def step():
    blocks = [torch.zeros(10 * 2**18) for _ in range(20)]  # 10 MB each, together more than glibc keeps as it is
    del blocks

for _ in range(8):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be asked")
def test_the_same_blocks_again_cost_no_page_faults() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], check=True, capture_output=True, text=True)
    assert int(done.stdout) < 100, "of 256000, were each of the blocks fresh from the system"
