"""The cases of a run: prepared or found prepared, and held in memory where they fit. Torch-free."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from medseg.core.case import CaseRecord, CompactCase
from medseg.core.errors import CaseError, ResourceError, TrainingError
from medseg.core.memory import free_memory_bytes
from medseg.core.progress import Listener, Progress
from medseg.data.cache import CaseCache
from medseg.data.cache_key import Preparation
from medseg.data.check.workers import num_processors
from medseg.data.container import StoredCase
from medseg.data.prepare import expanded
from medseg.data.source import MemorySource, StoredSource

Source = MemorySource | StoredSource

MAX_THREADS = 4
"""Cases prepared side by side: each takes a few times its size in memory."""

LEAST_FREE_BYTES = 2**30
"""Memory that stays free for the network when cases cannot be kept on disk."""


def prepared_cases(
    records: Sequence[CaseRecord],
    preparation: Preparation,
    cache: CaseCache,
    stage: str,
    listener: Listener,
    failed: dict[str, CaseError],
) -> tuple[Source, ...]:
    """Prepare cases, or find them prepared; one that cannot be read is told, and the others go on.

    Args:
        records: The cases.
        preparation: What is done to them.
        cache: Keeps them; where it cannot, they stay in memory.
        stage: For the progress bar.
        listener: Hears of each case and each failure.
        failed: Collects the errors by case.

    Raises:
        TrainingError: Not one could be read.
        ResourceError: They can be kept neither on disk nor in memory.
    """
    sources: list[Source] = []
    listener(Progress(stage, 0, len(records)))
    pool = ThreadPoolExecutor(min(MAX_THREADS, num_processors()))
    try:
        waiting = deque(pool.submit(cache.prepared, record, preparation) for record in records)
        for done, record in enumerate(records, start=1):
            try:
                kept = waiting.popleft().result()
            except CaseError as error:
                failed[record.id] = error
                messages = [f"{record.id} is left out: {error.message}"]
            else:
                messages = [f"{record.id}: {note}" for note in kept.notes]
                if kept.problem and kept.problem not in cache.told:
                    cache.told.add(kept.problem)
                    messages.append(f"cases stay in memory instead of the cache: {kept.problem}")
                sources.append(_source(kept.case, kept.problem))
            listener(Progress(stage, done, len(records), message="; ".join(messages)))
    finally:
        pool.shutdown(cancel_futures=True)
    if records and not sources:
        raise TrainingError(f"none of the {len(records)} cases could be read ({stage})", code="training.no_data")
    return tuple(sources)


def held_in_memory(sources: Sequence[Source], share: float, listener: Listener) -> tuple[Source, ...]:
    """Cases unpacked in memory, where all of them fit into a share of what is free; else as they are."""
    stored = [source for source in sources if isinstance(source, StoredSource)]
    needed = sum(source.case.expanded_bytes for source in stored)
    if needed > share * free_memory_bytes():
        message = f"patches are read from the cache: unpacked, the cases would take {needed / 2**30:.1f} GiB of memory"
        listener(Progress("preparing", len(sources), len(sources), message=message))
        return tuple(sources)
    return tuple(MemorySource(source.prepared()) for source in sources)


def _source(case: StoredCase | CompactCase, problem: str) -> Source:
    if isinstance(case, StoredCase):
        return StoredSource(case)
    if free_memory_bytes() < LEAST_FREE_BYTES:
        reason = problem or "cache.max_gb is 0"
        raise ResourceError(
            f"the prepared cases fit neither on disk nor into memory. The cache is of no help: {reason}",
            code="resource.memory",
        )
    return MemorySource(expanded(case))
