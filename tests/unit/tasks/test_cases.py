"""The cases of a run: where they are kept changes nothing about what the network sees."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from medseg.core.case import Dataset
from medseg.core.errors import ResourceError
from medseg.core.progress import Progress
from medseg.data.config import CacheConfig, LoaderConfig, PlanChoices
from medseg.data.plan import Plan
from medseg.data.source import MemorySource, StoredSource
from medseg.tasks.ct_segmentation import cases
from medseg.tasks.ct_segmentation.config import CtSegmentationConfig
from medseg.tasks.ct_segmentation.files import files
from medseg.tasks.ct_segmentation.training import CtSegmentationTask, create

CHOICES = PlanChoices(spacing_mm=(6.0, 6.0, 5.0), patch_ijk=(32, 32, 32))


@pytest.fixture(scope="module")
def dataset(sample: Path) -> Dataset:
    return files.read_dataset(sample)


@pytest.fixture(scope="module")
def plan(dataset: Dataset) -> Plan:
    return files.make_plan(CtSegmentationConfig(plan=CHOICES), dataset, lambda _: None)


def task(
    dataset: Dataset, plan: Plan, messages: list[str] | None = None, num_workers: int = 0, **cache
) -> CtSegmentationTask:
    def listen(event: Progress) -> None:
        if event.message and messages is not None:
            messages.append(event.message)

    config = CtSegmentationConfig(
        plan=CHOICES, cache=CacheConfig(**cache), loader=LoaderConfig(num_workers=num_workers)
    )
    return create(config, dataset, plan, listen)


def assert_same_batches(one: CtSegmentationTask, other: CtSegmentationTask) -> None:
    for a, b in zip(islice(one.train_batches(0), 4), islice(other.train_batches(0), 4), strict=True):
        assert a.case_ids == b.case_ids
        assert a.places == b.places
        for name in ("image", "classes", "annotated"):
            found, expected = getattr(a, name), getattr(b, name)
            assert found.dtype == expected.dtype
            assert torch.equal(found, expected), name


def test_batches_are_the_same_bits_from_memory_from_the_cache_and_without_a_cache(
    dataset: Dataset, plan: Plan, tmp_path: Path
) -> None:
    messages: list[str] = []
    fresh = task(dataset, plan, messages, folder=tmp_path)
    assert messages == []
    assert all(isinstance(source, MemorySource) for source in fresh.training)
    by_patch = task(dataset, plan, messages, folder=tmp_path, memory_share=0)
    assert all(isinstance(source, StoredSource) for source in by_patch.training)
    assert [message.split(":")[0] for message in messages] == ["patches are read from the cache"]
    uncached = task(dataset, plan, folder=tmp_path, max_gb=0)
    assert_same_batches(fresh, by_patch)
    assert_same_batches(fresh, task(dataset, plan, folder=tmp_path))
    assert_same_batches(fresh, uncached)
    assert_same_batches(fresh, task(dataset, plan, num_workers=1, folder=tmp_path, memory_share=0))
    for one, other in zip(by_patch.validation, uncached.validation, strict=True):
        assert isinstance(one, StoredSource)
        np.testing.assert_array_equal(one.prepared().image, other.prepared().image)
        np.testing.assert_array_equal(one.prepared().classes, other.prepared().classes)


def test_without_a_place_for_the_cache_cases_stay_in_memory_and_it_is_told_once(
    dataset: Dataset, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    messages: list[str] = []
    made = task(dataset, plan, messages, folder=tmp_path / "file")
    assert all(isinstance(source, MemorySource) for source in (*made.training, *made.validation))
    assert len([message for message in messages if "instead of the cache" in message]) == 1
    monkeypatch.setattr(cases, "free_memory_bytes", lambda: cases.LEAST_FREE_BYTES - 1)
    with pytest.raises(ResourceError, match="neither on disk nor into memory"):
        task(dataset, plan, folder=tmp_path / "file")


def test_cases_that_need_more_than_their_share_of_memory_are_not_held(
    dataset: Dataset, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = sum(s.case.expanded_bytes for s in task(dataset, plan, folder=tmp_path, memory_share=0).training)
    monkeypatch.setattr(cases, "free_memory_bytes", lambda: 2 * needed)
    held = task(dataset, plan, folder=tmp_path, memory_share=0.5)
    assert all(isinstance(source, MemorySource) for source in held.training)
    assert sum(s.case.image.nbytes + s.case.classes.nbytes for s in held.training) == needed
    assert all(isinstance(s, StoredSource) for s in task(dataset, plan, folder=tmp_path, memory_share=0.49).training)
