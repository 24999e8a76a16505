"""One worker process, as its parent sees it: start, run a task, end.

A task travels to it as pickled bytes, and so does what came of it (`roundoff.executors.serve`).
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Generator
from multiprocessing.connection import wait
from typing import Any

from roundoff.errors import CellError, WorkerDiedError
from roundoff.executors.serve import open_reply, serve

__all__ = ["Worker"]

_SPAWN = multiprocessing.get_context("spawn")  # a fork would inherit CUDA, OpenMP and locks
_GRACE_SECONDS = 5.0
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)
_ENVIRONMENT = threading.Lock()
_STILL_OURS = os.WEXITED | os.WNOHANG | os.WNOWAIT  # raises where the pid may be another's by now


class Worker:
    """A process that runs the task `begin`, then one task after another.

    The thread that starts it must live as long as it does: Linux ends a process that
    asked to die with its parent when the *thread* that started it ends.
    """

    def __init__(self, *, threads: int, begin: bytes) -> None:
        self._connection, theirs = _SPAWN.Pipe()
        self._process = _SPAWN.Process(
            target=serve, args=(theirs, os.getpid(), begin), name="roundoff-worker"
        )
        with _thread_variables(threads):
            self._process.start()
        theirs.close()  # the process has its own; its death must close the last one
        self._ready = self._doomed = False
        try:
            self._death = os.pidfd_open(self._process.pid or 0)
        except OSError:  # an old kernel: this one stays silent while a forked child lives
            self._death = os.dup(self._process.sentinel)

    def is_alive(self) -> bool:
        """Whether the process can take another task."""
        return not self._doomed and not wait([self._death], 0)

    def run(self, task: bytes, timeout: float | None) -> Any:
        """What the task returns; raises what the task raised, or `WorkerDiedError`."""
        if not self._ready:
            self._start_up()
        with contextlib.suppress(OSError):  # it died: `_receive` finds out of what
            self._connection.send_bytes(task)
        return open_reply(self._receive(timeout))

    def _start_up(self) -> None:
        try:
            open_reply(self._receive(None))
        except Exception as error:
            self.signal_end()
            raise CellError(
                f"the worker could not start: {error} (a script that uses workers needs "
                f'its main code under `if __name__ == "__main__":`)'
            ) from error
        self._ready = True

    def _receive(self, timeout: float | None) -> bytes:
        ready = wait([self._connection, self._death], timeout)
        if not ready:
            self.signal_end()
            raise WorkerDiedError(f"the cell took longer than {timeout:g} s and was killed")
        with contextlib.suppress(EOFError, OSError):
            if self._connection in ready or self._connection.poll():
                return self._connection.recv_bytes()
        died = wait([self._death], _GRACE_SECONDS)
        self.signal_end()
        self._process.join(_GRACE_SECONDS)
        how = _cause(self._process.exitcode) if died else "closed its pipe"
        raise WorkerDiedError(f"the worker of this cell {how}")

    def signal_end(self) -> None:
        """Kill the process and what it started, without waiting; from any thread."""
        self._doomed = True
        with contextlib.suppress(ValueError):  # closed already
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                pid = self._process.pid or 0
                os.waitid(os.P_PID, pid, _STILL_OURS)
                os.killpg(pid, signal.SIGKILL)
            self._process.kill()

    def close(self) -> None:
        """End the process and wait for it; gently if it is idle, as it then sees the pipe end."""
        self._connection.close()
        wait([self._death], _GRACE_SECONDS)
        self.signal_end()
        self._process.join(_GRACE_SECONDS)
        os.close(self._death)
        with contextlib.suppress(ValueError):  # not even SIGKILL ended it (a disk that hangs)
            self._process.close()


@contextlib.contextmanager
def _thread_variables(threads: int) -> Generator[None]:
    """Set the environment that a process started inside the block begins with.

    Libraries read it when they are loaded, which can be before any code of ours runs.
    """
    with _ENVIRONMENT:
        before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
        os.environ.update(dict.fromkeys(_THREAD_VARIABLES, str(threads)))
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def _cause(code: int | None) -> str:
    """What an exit code says, for a message."""
    if code is None or code >= 0:
        return f"ended with exit code {code} in the middle of it"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = "unknown"
    hint = {"SIGKILL": ": out of memory?", "SIGSEGV": ": a bug in native code?"}.get(name, "")
    return f"was killed by signal {-code} ({name}){hint}"
