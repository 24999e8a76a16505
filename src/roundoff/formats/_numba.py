"""The fast CPU twin of `_torch.py`: which kernel runs, and on how many threads."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Generator
from functools import lru_cache

import numba
import numpy as np
import torch
from numpy.typing import NDArray

from roundoff.formats._kernels import kernel
from roundoff.formats._plan import Plan

__all__ = ["round_into"]

# Below this many elements, waking a second thread takes longer than the work.
PARALLEL_FROM = 1 << 15

_THREADS: int = numba.config.NUMBA_NUM_THREADS  # pyright: ignore
_NO_KEY = np.zeros(2, np.uint32)

# Numba's last-resort thread pool dies when two threads enter it, and its OpenMP pool kills a
# forked child: a second thread, and a child, take the serial kernel.
_pool = threading.Lock()
_forked = False


def _mark_fork() -> None:
    global _forked, _pool
    _forked, _pool = True, threading.Lock()


os.register_at_fork(after_in_child=_mark_fork)


def round_into(x: torch.Tensor, out: torch.Tensor, plan: Plan, key: int) -> None:
    """Round `x` into `out`: both contiguous, on the CPU, and the same memory or disjoint."""
    numbers = _numbers(plan)
    source = x.numpy().reshape(-1).view(numbers.dtype)
    in_place = x.data_ptr() == out.data_ptr()
    target = source if in_place else out.numpy().reshape(-1).view(numbers.dtype)
    halves = np.array([key & 0xFFFFFFFF, key >> 32 & 0xFFFFFFFF], np.uint32) if key else _NO_KEY
    variant = plan.mode, plan.negative_zero, plan.carrier.mantissa, in_place
    with threads(source.size) as parallel:
        kernel(*variant, parallel=parallel)(source, target, numbers, halves)


@contextlib.contextmanager
def threads(elements: int) -> Generator[bool]:
    """Whether a loop over so many elements may run on torch's number of threads in the body."""
    count = min(torch.get_num_threads(), _THREADS) if elements >= PARALLEL_FROM else 1
    if count == 1 or _forked or not _pool.acquire(blocking=False):
        yield False
        return
    before = numba.get_num_threads()
    try:
        numba.set_num_threads(count)
        yield True
    finally:
        numba.set_num_threads(before)
        _pool.release()


@lru_cache(maxsize=512)
def _numbers(plan: Plan) -> NDArray[np.signedinteger]:
    """The plan as the kernels take it, in the integer that is as wide as the carrier."""
    numbers = (
        plan.drop,
        plan.reach,
        plan.tiny,
        plan.top,
        plan.over_positive,
        plan.over_negative,
        plan.infinite,
        plan.carrier.infinity,
    )
    return np.array(numbers, dtype=np.int32 if plan.carrier.mantissa == 23 else np.int64)
