"""Commands that are stopped, killed, or not alone: no cell is lost, doubled or repeated."""

import os
import random
import signal
import time

SMALL = ("--heads", 1, "--head-dim", 8, "--jobs", 1)
PLAN = (
    "bench", "--recipe", "fa2,paper-bf16,jax-xla", "--kernel", "torch-cpu-flash", *SMALL,
    "--seq-len", "8,16,32", "--seeds", 4, "-o", "run",
)  # fmt: skip
CELLS = 5 * 3 * 4


def wait_for_lines(folder, process, count):
    deadline = time.monotonic() + 60
    while len(folder.lines()) < count and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def check_complete(folder):
    done = folder.done()
    assert len(done) == len(set(done)) == len(folder.lines()) == CELLS
    assert not list((folder.path / "run/leases").iterdir())


def test_ctrl_c_and_the_same_command_again(folder):
    process = folder.start(*PLAN, start_new_session=True)
    wait_for_lines(folder, process, 2)  # the last may yet be cut back
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the whole group
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.strip().endswith("roundoff: interrupted; the same command goes on from here")
    assert "Traceback" not in err
    before = folder.done()
    assert 0 < len(before) < CELLS
    folder.run(*PLAN)
    check_complete(folder)


def test_killed_at_any_moment(folder):
    """Also while a line is being written, and before the first."""
    random.seed(7)
    for least in (0, 0, 1, 17):
        process = folder.start(*PLAN)
        wait_for_lines(folder, process, least)
        time.sleep(random.uniform(0, 6 if least == 0 else 0.05))
        process.kill()
        process.communicate(timeout=60)
    folder.run(*PLAN)
    check_complete(folder)


def test_two_commands_on_one_run(folder):
    both = [folder.start(*PLAN) for _ in range(2)]
    for process in both:
        _, err = process.communicate(timeout=200)
        assert process.returncode == 0, err
    check_complete(folder)


def test_a_damaged_line_costs_only_itself(folder, inside):
    plan = ("bench", "--recipe", "fa2", *SMALL, "--seq-len", "8,16", "--seeds", 2, "-o", "run")
    inside(*plan)
    [file] = (folder.path / "run").glob("cells-*.jsonl")
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:2], lines[2][:40], *lines[3:]]) + "\n")
    _, err = inside(*plan)
    assert f"{file.name}:3: not strict JSON" in err.replace("\n", " ")
    files = sorted((folder.path / "run").glob("cells-*.jsonl"), key=lambda p: p == file)
    assert len(files) == 2
    assert len(files[0].read_text().splitlines()) == 1  # the one that was lost
