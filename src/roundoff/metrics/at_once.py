"""Compiled loops on several threads: Python's own, since the loops let go of its lock.

Numba's pools of threads kill a forked child, or die when two threads enter them; these do not.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

import torch

__all__ = ["at_once", "parts_for_threads"]

WORTH_A_THREAD = 1 << 16
"""Elements; below this many, starting a thread takes longer than the work."""


def at_once(jobs: Sequence[Callable[[], object]], elements: int) -> None:
    """Run all jobs, which share the work on so many elements and do not raise.

    One after another where there is little to do, or torch was given one thread.
    """
    if elements < WORTH_A_THREAD or torch.get_num_threads() == 1:
        for job in jobs:
            job()
        return
    others = [threading.Thread(target=job) for job in jobs[1:]]
    for thread in others:
        thread.start()
    for job in jobs[:1]:
        job()
    for thread in others:
        thread.join()


def parts_for_threads(elements: int) -> Iterator[slice]:
    """Yield a slice of the elements for each thread that is worth starting.

    >>> list(parts_for_threads(100))
    [slice(0, 100, None)]
    """
    workers = max(1, min(torch.get_num_threads(), elements // WORTH_A_THREAD))
    for t in range(workers):
        yield slice(elements * t // workers, elements * (t + 1) // workers)
