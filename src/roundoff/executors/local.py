"""Local processes as a `concurrent.futures.Executor` in which a crash costs one task.

The pools of the standard library lose every pending task when one worker dies.
"""

from __future__ import annotations

import atexit
import contextlib
import queue
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Executor, Future
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from roundoff.errors import CellError, UsageError, WorkerDiedError
from roundoff.executors.serve import pack_task, run_initializer
from roundoff.executors.worker import Worker

__all__ = ["LocalExecutor"]

P = ParamSpec("P")
T = TypeVar("T")


class LocalExecutor(Executor):
    """At most `slots` worker processes, one task each at a time.

    Workers are spawned when first needed and used again. One that dies (an abort, a
    segmentation fault, the out-of-memory killer) or takes longer than `timeout` seconds
    over a task costs that task alone: its future raises `WorkerDiedError`, and a new
    worker takes the slot. What a task raises, its future raises; an exception that
    cannot be pickled, and one like SystemExit, arrives as a `CellError` with its text.

    Each worker computes with `threads` threads and runs `initializer` once, before its
    first task. What it prints goes to standard error. It ignores Ctrl-C, and it dies
    with the parent. Leaving the `with` block by an error, Ctrl-C included, cancels what
    is pending and kills what runs; otherwise all tasks are waited for.

    >>> with LocalExecutor(2, timeout=60) as executor:
    ...     executor.submit(pow, 2, 10).result()
    1024
    """

    def __init__(
        self,
        slots: int,
        *,
        timeout: float | None = None,
        threads: int = 1,
        initializer: Callable[[], object] | None = None,
    ) -> None:
        if slots < 1 or threads < 1 or (timeout is not None and not timeout > 0):
            raise UsageError(
                f"slots={slots}, threads={threads}, timeout={timeout}: expected at least one "
                f"slot and one thread, and a timeout above 0 or None"
            )
        self._slots = _Slots(slots, timeout, threads, initializer)
        weakref.finalize(self, self._slots.close).atexit = False  # at exit they are killed

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run `fn(*args, **kwargs)` in a worker; the future can be cancelled until it runs."""
        future: Future[T] = Future()
        try:
            task = pack_task(fn, *args, **kwargs)
        except CellError as error:
            future.set_running_or_notify_cancel()
            future.set_exception(error)
        else:
            self._slots.put(future, task)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more tasks; with `wait`, return when the workers have ended."""
        if cancel_futures:
            self._slots.cancel_pending()
        self._slots.close()
        if wait:
            self._slots.join()

    def kill(self) -> None:
        """Cancel what is pending and kill what runs; its futures raise `WorkerDiedError`."""
        self._slots.kill()
        self._slots.join()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> bool | None:
        if exc_type is None:
            self.shutdown()
        else:
            self.kill()
        return None


class _Slots:
    """The threads behind an executor, one a slot, each with a worker of its own.

    Apart from the executor, so that a forgotten executor can be collected.
    """

    def __init__(
        self,
        count: int,
        timeout: float | None,
        threads: int,
        initializer: Callable[[], object] | None,
    ) -> None:
        begin = pack_task(run_initializer, initializer)  # an error here, not in every task
        self._count = count
        self._timeout = timeout
        self._start = lambda: Worker(threads=threads, begin=begin)
        self._tasks: queue.SimpleQueue[tuple[Future[Any], bytes] | None] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._lock = threading.Lock()
        self._managers: list[threading.Thread] = []
        self._workers: set[Worker] = set()
        self._closed = self._killed = False
        _LIVE.add(self)

    def put(self, future: Future[Any], task: bytes) -> None:
        with self._lock:
            if self._closed:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self._tasks.put((future, task))
            if not self._idle.acquire(blocking=False) and len(self._managers) < self._count:
                manager = threading.Thread(target=self._manage, name="roundoff-slot", daemon=True)
                self._managers.append(manager)
                manager.start()

    def close(self) -> None:
        with self._lock:
            if not self._closed:
                self._closed = True
                for _ in self._managers:
                    self._tasks.put(None)

    def cancel_pending(self) -> None:
        ends = 0
        with contextlib.suppress(queue.Empty):
            while True:
                if (item := self._tasks.get_nowait()) is None:
                    ends += 1
                else:
                    item[0].cancel()
        for _ in range(ends):
            self._tasks.put(None)

    def kill(self) -> None:
        with self._lock:
            self._killed = True
            workers = list(self._workers)
        self.cancel_pending()
        self.close()
        for worker in workers:
            worker.signal_end()

    def join(self) -> None:
        for manager in self._managers:
            manager.join()

    def _manage(self) -> None:
        """One slot: run tasks in a worker, and replace the worker when it has died."""
        worker = None
        try:
            while (item := self._next()) is not None:
                worker = self._run(worker, *item)
                del item  # an idle slot keeps no result alive
        finally:
            self._end(worker)

    def _next(self) -> tuple[Future[Any], bytes] | None:
        try:
            return self._tasks.get_nowait()
        except queue.Empty:
            self._idle.release()
            return self._tasks.get()

    def _run(self, worker: Worker | None, future: Future[Any], task: bytes) -> Worker | None:
        if not future.set_running_or_notify_cancel():
            return worker
        try:
            if worker is None or not worker.is_alive():
                self._end(worker)
                worker = None
                worker = self._begin()
            value = worker.run(task, self._timeout)
        except BaseException as error:
            ended = WorkerDiedError("the executor was ended while this cell ran")
            future.set_exception(ended if self._killed else error)
        else:
            future.set_result(value)
        return worker

    def _begin(self) -> Worker:
        with self._lock:  # a worker is either not started or seen by `kill`
            if self._killed:
                raise WorkerDiedError("the executor was ended")
            worker = self._start()
            self._workers.add(worker)
            return worker

    def _end(self, worker: Worker | None) -> None:
        if worker is not None:
            worker.close()
            with self._lock:
                self._workers.discard(worker)


_LIVE: weakref.WeakSet[_Slots] = weakref.WeakSet()


def _kill_all() -> None:
    """Before `multiprocessing` joins its processes at exit, which would wait for ever."""
    for slots in list(_LIVE):
        slots.kill()
        slots.join()


atexit.register(_kill_all)
