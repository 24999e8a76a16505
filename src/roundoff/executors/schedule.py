"""Which cells run here, and how many at a time, over any `concurrent.futures.Executor`."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Executor, Future
from concurrent.futures import wait as wait_for
from itertools import islice
from typing import TypeVar

from roundoff.errors import CellError, UsageError, WorkerDiedError

__all__ = ["run_tasks", "shard"]

T = TypeVar("T")
R = TypeVar("R")


def run_tasks(
    executor: Executor,
    tasks: Iterable[T],
    function: Callable[[T], R],
    *,
    in_flight: int,
) -> Iterator[tuple[T, R | Exception]]:
    """Run `function(task)` for every task; yield (task, result) as they finish.

    At most `in_flight` tasks are submitted at a time, and `tasks` is read no further
    ahead, so it may be endless or depend on what has been yielded. A task that raises
    is yielded with its exception in place of the result; a pool that broke gives a
    `WorkerDiedError` for each task that is left. Closing the iterator, or an error in
    the loop over it, cancels what has not begun.

    >>> from concurrent.futures import ThreadPoolExecutor
    >>> with ThreadPoolExecutor() as executor:
    ...     sorted(run_tasks(executor, [3, 1, 2], str, in_flight=2))
    [(1, '1'), (2, '2'), (3, '3')]
    """
    if in_flight < 1:
        raise UsageError(f"in_flight={in_flight}: expected at least 1")
    return _run_tasks(executor, iter(tasks), function, in_flight)


def _run_tasks(
    executor: Executor, tasks: Iterator[T], function: Callable[[T], R], in_flight: int
) -> Generator[tuple[T, R | Exception]]:
    running: dict[Future[R], T] = {}
    try:
        while True:
            for task in islice(tasks, in_flight - len(running)):
                running[_submit(executor, function, task)] = task
            if not running:
                return
            done, _ = wait_for(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield running.pop(future), _outcome(future)
    finally:
        for future in running:
            future.cancel()


def _submit(executor: Executor, function: Callable[[T], R], task: T) -> Future[R]:
    try:
        return executor.submit(function, task)
    except BrokenExecutor as error:
        future: Future[R] = Future()
        future.set_exception(error)
        return future


def _outcome(future: Future[R]) -> R | Exception:
    try:
        error = future.exception()
    except CancelledError:
        return CellError("the task was cancelled")
    if error is None:
        return future.result()
    if isinstance(error, BrokenExecutor):
        return WorkerDiedError(
            f"the executor broke, with every task in it: {error} (the local executor loses one)"
        )
    return error if isinstance(error, Exception) else CellError(f"the task raised {error!r}")


def shard(items: Iterable[T], part: str, *, key: Callable[[T], str] = str) -> list[T]:
    """The items of one part of n: `part` is "i/n" with i from 1 to n.

    The parts are disjoint and together complete. An item's part depends on nothing but
    `key(item)` and n, so machines that know nothing of each other agree, also when the
    plan has grown; parts are of equal size only on average.

    >>> shard(range(8), "1/2"), shard(range(8), "2/2")
    ([0, 2, 4, 7], [1, 3, 5, 6])
    """
    match = re.fullmatch(r"(\d+)/(\d+)", part, re.ASCII)
    index, count = map(int, match.groups()) if match else (0, 0)
    if not 1 <= index <= count:
        raise UsageError(f"shard {part!r}: expected i/n with i from 1 to n, such as 2/8")
    return [item for item in items if _hash(key(item)) % count == index - 1]


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
