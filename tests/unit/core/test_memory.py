from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medseg.core import memory


def group(folder: Path, limit: str, used: int, inactive: int, version: int) -> None:
    names = memory.GROUP_FILES[0 if version == 2 else 1]
    texts = (limit, str(used), f"cache 5\n{'total_' * (version == 1)}inactive_file {inactive}\n")
    for name, text in zip(names, texts, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.mark.parametrize("version", [1, 2])
def test_a_container_may_take_its_limit_less_what_it_uses_and_the_kernel_would_not_give_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    group(tmp_path, "3000000", 1000000, 400000, version)
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert memory.free_memory_bytes() == 2400000


@pytest.mark.parametrize("limit", ["max", "9223372036854771712"])
def test_without_a_limit_the_machine_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    group(tmp_path, limit, 10, 0, 2)
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    limited = memory.free_memory_bytes()
    monkeypatch.setattr(memory, "CGROUP", tmp_path / "nowhere")
    assert limited == pytest.approx(memory.free_memory_bytes(), rel=0.2)


def test_a_group_that_is_over_its_limit_has_nothing_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group(tmp_path, "1000", 5000, 0, 2)
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert memory.free_memory_bytes() == 0


def test_the_peak_is_watched_from_when_it_was_forgotten() -> None:
    size = 64 * 2**20
    memory.forget_peak()
    before = memory.peak_resident_bytes()
    if before == 0:
        pytest.skip("this system does not tell")
    array = np.ones(size, np.uint8)
    assert memory.resident_bytes() > 0
    assert memory.peak_resident_bytes() - before > 0.8 * size
    del array
    assert memory.peak_resident_bytes() - before > 0.8 * size, "a peak stays"
