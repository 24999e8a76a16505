"""What a worker process does: take a task from the pipe, run it, send what came of it.

It outlives no parent, leaves Ctrl-C to the parent, and never writes to standard output.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from roundoff.errors import CellError

__all__ = ["open_reply", "pack_task", "run_initializer", "serve"]

_PR_SET_PDEATHSIG = 1


def pack_task(function: Callable[..., object], *args: object, **kwargs: object) -> bytes:
    """A call as bytes; a `CellError` where it cannot travel (a lambda, a local function)."""
    try:
        return pickle.dumps((function, args, kwargs))
    except Exception as error:
        raise CellError(f"this task cannot be sent to a worker process: {error}") from error


def run_initializer(initializer: Callable[[], object] | None) -> None:
    """The first task of every worker."""
    if initializer is not None:
        initializer()


def serve(connection: Connection, parent: int, task: bytes) -> None:
    """Run `task`, then those that come through the pipe, until it ends."""
    os.setsid()  # one group to kill, with all that tasks start; away from the terminal's Ctrl-C
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with(parent)
    os.dup2(2, 1)  # also for native code: standard output belongs to the parent
    try:
        while True:
            connection.send_bytes(_run(task))
            task = connection.recv_bytes()
    except (EOFError, OSError):  # the parent closed its end, or died
        return


def _die_with(parent: int) -> None:
    """Let the kernel kill this process when its parent dies, even in the middle of a task."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before that
            os._exit(1)


def _run(task: bytes) -> bytes:
    """What the task returned or raised, as bytes that can be read back."""
    try:
        function, args, kwargs = pickle.loads(task)
        value = function(*args, **kwargs)
    except Exception as error:
        return _failure(error)
    except BaseException as error:  # SystemExit, and libraries' own: they would end the parent
        return _failure(CellError(_text(error)), traceback.format_exc())
    try:
        return pickle.dumps((True, value, ""))
    except Exception as error:
        return _failure(CellError(f"the result of this task cannot be sent back: {error}"))


def _failure(error: Exception, trace: str | None = None) -> bytes:
    trace = trace or "".join(traceback.format_exception(error))
    try:
        data = pickle.dumps((False, error, trace))
        pickle.loads(data)  # some exceptions can be written and not read
    except Exception:
        return pickle.dumps((False, CellError(_text(error)), trace))
    return data


def _text(error: BaseException) -> str:
    return f"{type(error).__module__}.{type(error).__qualname__}: {error}"


def open_reply(reply: bytes) -> Any:
    """The value in a reply; raises the error in it, with the worker's traceback as a note."""
    try:
        succeeded, value, trace = pickle.loads(reply)
    except Exception as error:
        raise CellError(f"what the worker sent cannot be read here: {_text(error)}") from error
    if succeeded:
        return value
    value.add_note(f"in the worker:\n{trace}")
    raise value
