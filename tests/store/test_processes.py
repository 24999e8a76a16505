"""Writers that are killed, and writers that work at the same time."""

import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

import roundoff
from roundoff.store import Run

IDS = [f"{n:016x}" for n in range(120)]

SCRIPT = """
import sys
from roundoff.store import Run

path, chunk, size, *ids = sys.argv[1:]
run = Run.create_or_open(path, manifest={})
with run.writer() as writer:
    for start in range(0, len(ids), int(chunk)):
        for key in writer.claim(ids[start : start + int(chunk)]):
            writer.append({"schema": 1, "id": key, "status": "ok", "text": "x" * int(size)})
"""


def start(path, ids, *, chunk=5, size=3000):
    source = str(Path(roundoff.__file__).parents[1])
    command = [sys.executable, "-c", SCRIPT, str(path), str(chunk), str(size), *ids]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": source})


def size_of(path):
    return sum(p.stat().st_size for p in path.glob("cells-*.jsonl"))


def whole_lines(path):
    lines = [line for p in path.glob("cells-*.jsonl") for line in p.read_bytes().split(b"\n")]
    return sum(line.endswith(b"}") for line in lines)


@pytest.mark.parametrize("seed", range(8))
def test_a_killed_writer_loses_and_doubles_nothing(tmp_path, seed):
    draw = random.Random(seed)
    path = tmp_path / "run"
    run = Run.create_or_open(path, manifest={})
    for _ in range(2):
        size = draw.choice([3000, 300_000])  # writing the longer lines is often cut short
        victim = start(path, IDS, size=size)
        enough = size_of(path) + draw.randrange(30 * size)
        while size_of(path) < enough and victim.poll() is None:
            time.sleep(draw.random() / 1000)
        victim.kill()
        victim.wait()
        before = run.finished_ids()
        assert run.problems == []
    assert start(path, IDS, size=10).wait() == 0
    assert before <= run.finished_ids() == set(IDS)
    assert whole_lines(path) == len(IDS)
    assert list((path / "leases").iterdir()) == []


def test_two_processes_share_a_run(tmp_path):
    path = tmp_path / "run"
    backwards = IDS[::-1]
    both = [start(path, IDS, chunk=3, size=10), start(path, backwards, chunk=7, size=10)]
    assert [process.wait() for process in both] == [0, 0]
    run = Run.open(path)
    assert run.finished_ids() == set(IDS)
    assert whole_lines(path) == len(IDS)


def test_what_a_stopped_command_left_is_completed_while_another_runs(tmp_path):
    path = tmp_path / "run"
    killed = start(path, IDS, chunk=len(IDS), size=100_000)
    while not size_of(path):
        time.sleep(0.001)
    killed.kill()
    killed.wait()
    both = [start(path, IDS, size=10) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    counts = Counter(row["id"] for row in Run.open(path).rows())
    assert counts == Counter(IDS)
    assert whole_lines(path) == len(IDS)


def test_importing_the_store_imports_no_library():
    source = str(Path(roundoff.__file__).parents[1])
    code = (
        "import sys, roundoff.store, roundoff.executors\n"
        "print({'torch', 'numpy', 'pandas', 'duckdb'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code]
    found = subprocess.check_output(command, env={**os.environ, "PYTHONPATH": source}, text=True)
    assert found.strip() == "set()"
