"""The parent is interrupted, killed, or forgetful: no worker is left."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import roundoff

SLEEPING = """
import os, time
from roundoff.executors import LocalExecutor, run_tasks

def work(n):
    print("worker", os.getpid(), flush=True)
    time.sleep(60)

if __name__ == "__main__":
    print("parent", flush=True)
    try:
        with LocalExecutor(2) as executor:
            for _ in run_tasks(executor, range(9), work, in_flight=3):
                pass
    finally:
        print("left", flush=True)
"""
UNGUARDED = """
from roundoff.executors import LocalExecutor
with LocalExecutor(1) as executor:
    print(executor.submit(pow, 2, 3).result())
"""
FORGOTTEN = """
import os, time
from roundoff.executors import LocalExecutor

if __name__ == "__main__":
    executor = LocalExecutor(1)
    print(executor.submit(os.getpid).result(), flush=True)
    executor.submit(time.sleep, 60)
    time.sleep(0.2)
"""


@pytest.fixture
def start(tmp_path):
    """Start a script; its standard error lies in the file "stderr"."""
    with contextlib.ExitStack() as stack:

        def start(text):
            (tmp_path / "script.py").write_text(text)
            source = str(Path(roundoff.__file__).parents[1])
            process = subprocess.Popen(
                [sys.executable, str(tmp_path / "script.py")],
                stdout=subprocess.PIPE,
                stderr=stack.enter_context((tmp_path / "stderr").open("w")),
                text=True,
                env={**os.environ, "PYTHONPATH": source},
                start_new_session=True,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield start


def is_alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def wait_until(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def worker_pids(tmp_path, count):
    """The pids that the workers of SLEEPING have printed, once there are so many."""

    def told():
        lines = (tmp_path / "stderr").read_text().split("\n")
        return [int(line.split()[1]) for line in lines[:-1] if line.startswith("worker")]

    wait_until(lambda: len(told()) == count)
    return told()


@pytest.mark.parametrize("whole_group", [False, True], ids=["parent only", "as a terminal does"])
def test_ctrl_c_ends_everything_at_once(start, tmp_path, whole_group):
    process = start(SLEEPING)
    pids = worker_pids(tmp_path, 2)
    began = time.monotonic()
    (os.killpg if whole_group else os.kill)(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=20)
    assert time.monotonic() - began < 10
    assert process.returncode == -signal.SIGINT
    assert out == "parent\nleft\n"
    assert not any(map(is_alive, pids))
    errors = (tmp_path / "stderr").read_text()
    assert errors.count("Traceback") == 1  # the parent's own; the workers keep quiet
    assert errors.endswith("KeyboardInterrupt\n")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_parent_leaves_no_orphan(start, tmp_path, number):
    process = start(SLEEPING)
    pids = worker_pids(tmp_path, 2)
    assert all(map(is_alive, pids))
    process.send_signal(number)
    process.wait()
    wait_until(lambda: not any(map(is_alive, pids)))


def test_an_executor_that_is_never_shut_down_does_not_hold_the_exit(start):
    process = start(FORGOTTEN)
    out, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    assert not is_alive(int(out))


def test_a_script_without_a_main_guard_is_told(start, tmp_path):
    process = start(UNGUARDED)
    process.communicate(timeout=60)
    last = (tmp_path / "stderr").read_text().splitlines()[-1]
    assert "could not start" in last
    assert "__main__" in last
