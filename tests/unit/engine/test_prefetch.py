from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import islice

import pytest
import torch

from medseg.engine import prefetch
from medseg.engine.prefetch import made_ahead, made_in_time


def count_threads() -> int:
    return sum(thread.name == "batches" for thread in threading.enumerate())


def test_the_batches_are_the_same_and_in_order(line_task) -> None:
    with made_ahead(line_task().train_batches(3)) as batches:
        taken = list(islice(batches, 20))
    assert [batch.step for batch in taken] == list(range(3, 23))
    for mine, theirs in zip(taken, line_task().train_batches(3), strict=False):
        assert torch.equal(mine.inputs, theirs.inputs)
    assert count_threads() == 0


def test_no_more_are_made_than_are_soon_needed() -> None:
    made = threading.Semaphore(0)

    def numbers() -> Iterator[int]:
        for number in range(1000):
            made.release()
            yield number

    with made_ahead(numbers()) as batches:
        assert next(batches) == 0
        assert [made.acquire(timeout=10) for _ in range(2)] == [True, True]
        taken = 2 + sum(made.acquire(timeout=0.3) for _ in range(5))
    assert taken <= 3, "the one that was taken, one that waits, one that is being made"


def test_one_core_makes_them_and_the_network_keeps_its_own() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with made_ahead(iter(torch.get_num_threads, None)) as batches:
            assert next(batches) == 1
            assert torch.get_num_threads() == 2
            later: list[int] = []
            thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
            thread.start()
            thread.join()
            assert later == [2]
    finally:
        torch.set_num_threads(before)


def test_an_error_comes_where_its_batch_was_due() -> None:
    def numbers() -> Iterator[int]:
        yield 1
        yield 2
        raise OSError("the disk is gone")

    with made_ahead(numbers()) as batches:
        assert [next(batches), next(batches)] == [1, 2]
        with pytest.raises(OSError, match="the disk is gone"):
            next(batches)
    with made_ahead(iter([1, 2])) as batches:
        assert list(batches) == [1, 2]
    assert count_threads() == 0


def test_an_error_of_the_network_ends_the_thread(tmp_path, line_task, train_line) -> None:
    with pytest.raises(ZeroDivisionError), made_ahead(line_task().train_batches(0)) as batches:
        next(batches)
        raise ZeroDivisionError
    train_line(tmp_path)
    assert count_threads() == 0


@pytest.mark.parametrize(
    ("num_cores", "num_threads", "device", "is_beside"),
    [
        (2, 2, "cpu", False),  # nobody is free
        (2, 1, "cpu", True),  # a core is
        (16, 16, "cpu", True),
        (2, 2, "cuda", True),
    ],
)
def test_a_thread_makes_them_only_where_it_takes_no_core_from_the_network(
    monkeypatch, num_cores, num_threads, device, is_beside
) -> None:
    monkeypatch.setattr(prefetch.os, "sched_getaffinity", lambda _: set(range(num_cores)), raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: num_threads)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    with made_in_time(iter(range(5)), torch.device(device)) as batches:
        assert next(batches) == 0
        assert count_threads() == is_beside
        assert list(batches) == [1, 2, 3, 4]
    assert count_threads() == 0
