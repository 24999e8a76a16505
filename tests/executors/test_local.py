"""Local workers: what a task does to its process costs that task and no other."""

import contextlib
import ctypes
import functools
import os
import signal
import sys
import threading
import time
import types
from concurrent.futures import CancelledError

import pytest

from roundoff.errors import CellError, UnknownNameError, UsageError, WorkerDiedError
from roundoff.executors import LocalExecutor

# Builtins and names of the standard library, as a worker must be able to import its task.
RAISE = """
class Stubborn(Exception):
    def __init__(self, a, b):
        super().__init__(f"{a} and {b}")
raise Stubborn(1, 2)
"""
UNKNOWN = """
from roundoff.errors import UnknownNameError
raise UnknownNameError("format", "bf15", ["bf16"])
"""
MARK = "import os; os.environ['MARK'] = os.environ.get('MARK', '') + 'x'"
FORK_AND_ABORT = """
import os, time
if os.fork() == 0:
    time.sleep(60)
    os._exit(0)
os.abort()
"""
FORK_AND_TELL = """
import os, sys, time
child = os.fork()
if child == 0:
    time.sleep(60)
    os._exit(0)
open({!r}, "w").write(str(child))
time.sleep(60)
"""


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class TestDeaths:
    @pytest.mark.parametrize(
        ("call", "message"),
        [
            ((os.abort,), r"signal 6 \(SIGABRT\)"),
            ((os._exit, 3), "exit code 3"),
            ((os._exit, 0), "exit code 0"),
            ((signal.raise_signal, signal.SIGKILL), r"signal 9 \(SIGKILL\): out of memory"),
            ((ctypes.string_at, 0), r"signal 11 \(SIGSEGV\)"),
            ((signal.raise_signal, 40), r"signal 40 \(unknown\)"),
            ((exec, FORK_AND_ABORT), "SIGABRT"),
            ((os.closerange, 3, 100), "closed its pipe|exit code"),
        ],
        ids=lambda value: getattr(value[0], "__name__", None) if isinstance(value, tuple) else "",
    )
    def test_a_dead_worker_costs_its_task_alone(self, call, message):
        with LocalExecutor(2) as executor:
            before = [executor.submit(pow, 2, n) for n in range(4)]
            victim = executor.submit(*call)
            after = [executor.submit(pow, 2, n) for n in range(4)]
            with pytest.raises(WorkerDiedError, match=message):
                victim.result()
            assert [f.result() for f in before + after] == [1, 2, 4, 8] * 2

    def test_every_task_may_die(self):
        with LocalExecutor(2) as executor:
            futures = [executor.submit(os._exit, n) for n in range(6)]
            errors = [str(f.exception()) for f in futures]
        assert [f"exit code {n}" in error for n, error in enumerate(errors)] == [True] * 6

    def test_a_worker_that_dies_idle_costs_nothing(self):
        with LocalExecutor(1) as executor:
            pid = executor.submit(os.getpid).result()
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: not is_alive(pid))
            assert executor.submit(pow, 2, 3).result() == 8

    def test_a_hanging_task_is_killed(self):
        with LocalExecutor(1, timeout=0.3) as executor:
            hanging = executor.submit(time.sleep, 60)
            assert executor.submit(pow, 2, 3).result() == 8
            with pytest.raises(WorkerDiedError, match=r"longer than 0\.3 s and was killed"):
                hanging.result()

    def test_what_a_killed_task_had_started_is_killed_too(self, tmp_path):
        told = tmp_path / "pid"
        with LocalExecutor(1, timeout=2) as executor:
            executor.submit(exec, FORK_AND_TELL.format(str(told))).exception()
        pid = int(told.read_text())
        wait_until(lambda: not is_alive(pid))


class TestErrors:
    def test_an_exception_travels_as_it_is(self):
        with LocalExecutor(1) as executor:
            with pytest.raises(ZeroDivisionError) as caught:
                executor.submit(divmod, 1, 0).result()
            assert "in the worker" in caught.value.__notes__[0]
            with pytest.raises(UnknownNameError, match="did you mean 'bf16'"):
                executor.submit(exec, UNKNOWN).result()

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            ((exec, RAISE), "Stubborn: 1 and 2"),
            ((exit, 3), "SystemExit: 3"),
            ((exec, "raise KeyboardInterrupt"), "KeyboardInterrupt"),
            ((eval, "lambda: 0"), "cannot be sent back"),
        ],
    )
    def test_what_cannot_travel_becomes_text(self, call, message):
        with LocalExecutor(1) as executor:
            pid = executor.submit(os.getpid).result()
            with pytest.raises(CellError, match=message) as caught:
                executor.submit(*call).result()
            assert type(caught.value) is CellError
            assert executor.submit(os.getpid).result() == pid

    def test_a_task_that_cannot_be_sent(self):
        with LocalExecutor(1) as executor, pytest.raises(CellError, match="cannot be sent"):
            executor.submit(lambda: 0).result()

    def test_a_task_that_the_worker_cannot_import(self, monkeypatch):
        module = types.ModuleType("only_here")
        exec("def work(): ...", module.__dict__)
        monkeypatch.setitem(sys.modules, "only_here", module)
        with LocalExecutor(1) as executor:
            with pytest.raises(ModuleNotFoundError, match="only_here"):
                executor.submit(module.work).result()
            assert executor.submit(pow, 2, 3).result() == 8

    @pytest.mark.parametrize(
        "arguments", [{"slots": 0}, {"slots": 1, "timeout": 0}, {"slots": 1, "threads": 0}]
    )
    def test_arguments(self, arguments):
        with pytest.raises(UsageError, match="expected"):
            LocalExecutor(**arguments)


class TestWorkers:
    def test_workers_are_used_again_and_started_when_needed(self):
        with LocalExecutor(3) as executor:
            one = {executor.submit(os.getpid).result() for _ in range(5)}
            assert len(one) == 1
            barrier = [executor.submit(time.sleep, 0.3) for _ in range(3)]
            many = {executor.submit(os.getpid) for _ in range(30)}
            pids = {future.result() for future in many}
            assert len(pids | one) <= 3
            assert [f.result() for f in barrier] == [None] * 3
        wait_until(lambda: not any(map(is_alive, pids | one)))

    def test_threads_are_set_before_anything_is_loaded(self, monkeypatch):
        monkeypatch.setenv("OMP_NUM_THREADS", "7")
        monkeypatch.delenv("NUMBA_NUM_THREADS", raising=False)
        with LocalExecutor(1, threads=2) as executor:
            found = executor.submit(eval, "dict(__import__('os').environ)").result()
            loaded = executor.submit(eval, "set(__import__('sys').modules)").result()
        assert found["OMP_NUM_THREADS"] == found["NUMBA_NUM_THREADS"] == "2"
        assert os.environ["OMP_NUM_THREADS"] == "7"
        assert "NUMBA_NUM_THREADS" not in os.environ
        assert "torch" not in loaded

    def test_the_initializer_runs_once_in_every_worker(self):
        mark = functools.partial(exec, MARK)
        with LocalExecutor(1, initializer=mark) as executor:
            for _ in range(2):
                assert executor.submit(os.getenv, "MARK").result() == "x"
            executor.submit(os.abort).exception()
            assert executor.submit(os.getenv, "MARK").result() == "x"

    def test_an_initializer_that_fails_is_reported(self):
        with LocalExecutor(1, initializer=functools.partial(divmod, 1, 0)) as executor:
            for _ in range(2):
                with pytest.raises(CellError, match=r"could not start: .*zero"):
                    executor.submit(pow, 2, 3).result()

    def test_standard_output_belongs_to_the_parent(self, capfd):
        with LocalExecutor(1) as executor:
            executor.submit(print, "printed", flush=True).result()
            executor.submit(os.system, "echo echoed").result()
        out, err = capfd.readouterr()
        assert out == ""
        assert "printed" in err
        assert "echoed" in err

    def test_large_values_travel(self):
        data = b"x" * 3_000_000
        with LocalExecutor(1) as executor:
            assert executor.submit(bytes.upper, data).result() == data.upper()

    def test_many_small_tasks(self):
        with LocalExecutor(2) as executor:
            assert list(executor.map(abs, range(-2000, 0))) == list(range(2000, 0, -1))


class TestEnding:
    def test_pending_futures_can_be_cancelled(self):
        with LocalExecutor(1) as executor:
            running = executor.submit(time.sleep, 0.5)
            pending = executor.submit(pow, 2, 3)
            assert pending.cancel()
            assert running.result() is None
            assert executor.submit(pow, 2, 4).result() == 16
        with pytest.raises(CancelledError):
            pending.result()

    def test_leaving_the_block_waits(self):
        with LocalExecutor(2) as executor:
            futures = [executor.submit(time.sleep, 0.1) for _ in range(4)]
        assert all(f.done() and f.exception() is None for f in futures)
        with pytest.raises(RuntimeError, match="after shutdown"):
            executor.submit(pow, 2, 3)

    def test_leaving_the_block_by_an_error_kills(self):
        with contextlib.suppress(KeyError), LocalExecutor(1) as executor:
            pid = executor.submit(os.getpid).result()
            running = executor.submit(time.sleep, 60)
            pending = executor.submit(pow, 2, 3)
            wait_until(running.running)
            raise KeyError
        assert not is_alive(pid)
        assert isinstance(running.exception(), WorkerDiedError)
        assert pending.cancelled()

    def test_shutdown_cancels_what_is_pending(self):
        executor = LocalExecutor(1)
        running = executor.submit(time.sleep, 0.3)
        wait_until(running.running)
        pending = executor.submit(pow, 2, 3)
        executor.shutdown(cancel_futures=True)
        assert running.result() is None
        assert pending.cancelled()
        executor.shutdown()

    def test_a_forgotten_executor_finishes_and_ends(self):
        pid = LocalExecutor(1).submit(os.getpid).result()
        wait_until(lambda: not is_alive(pid))
        wait_until(lambda: not any(t.name == "roundoff-slot" for t in threading.enumerate()))
