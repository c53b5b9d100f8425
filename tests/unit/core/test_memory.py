from __future__ import annotations

from pathlib import Path

import pytest

from medseg.core import memory
from medseg.core.memory import free_memory_bytes


def test_what_is_free_lies_within_the_machine_and_within_a_containers_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    free = free_memory_bytes()
    assert 2**24 < free < 2**50
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text(f"{2**20}\n")
    (tmp_path / "memory.stat").write_text("anon 5\nactive_file 7\ninactive_file 4096\n")
    assert free_memory_bytes() > 2**24
    (tmp_path / "memory.max").write_text(f"{2**23}\n")
    assert free_memory_bytes() == 2**23 - 2**20 + 4096
    (tmp_path / "memory.current").write_text(f"{2**24}\n")
    assert free_memory_bytes() == 0
