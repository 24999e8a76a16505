"""Sweeps over any executor: every cell once, whatever happens to some."""

from collections import Counter
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import pytest

from roundoff.bench.measure import measure_task
from roundoff.bench.plan import make_plan
from roundoff.bench.sweep import identified, run_cells
from roundoff.errors import RunError, UsageError, WorkerDiedError
from roundoff.store import Run


class Inline(Executor):
    """Runs a task when it is submitted; `break_on` says which die."""

    def __init__(self, break_on=lambda task: False):
        self.tasks, self.break_on = [], break_on

    def submit(self, fn, /, task):
        future = Future()
        self.tasks.append(task)
        if self.break_on(task):
            future.set_exception(WorkerDiedError("killed by signal 6"))
        else:
            future.set_result(fn(task))
        return future


def planned(**changes):
    sweep = {
        "baseline": "torch-math", "recipes": "fa2,paper-bf16", "kernels": "torch-cpu-flash",
        "seeds": 2, "axes": {"seq_len": "8,16", "heads": 1, "head_dim": 8}, **changes,
    }  # fmt: skip
    return identified(make_plan({"sweep": [sweep]}).cells())


def statuses(run):
    return Counter(row["status"] for row in run.rows())


@pytest.fixture
def run(tmp_path):
    return Run.create_or_open(tmp_path / "run", manifest={})


def lines(run):
    text = "".join(p.read_text() for p in run.path.glob("cells-*.jsonl"))
    return text.splitlines()


def test_every_cell_once_and_then_none(run):
    cells = planned()
    seen = []
    executor = Inline()
    progress = run_cells(
        run, cells, executor, in_flight=2, tell=lambda p: seen.append((p.before, p.done))
    )
    assert (progress.total, progress.before, progress.done, progress.failed) == (16, 0, 16, 0)
    assert seen[0] == (0, 0)
    assert seen[-1] == (0, 16)
    assert len(executor.tasks) == 4  # one a problem: golden and baseline are shared
    assert run.finished_ids() == cells.keys()
    again = run_cells(run, cells, executor, in_flight=2)
    assert (again.before, again.done) == (16, 0)
    assert len(executor.tasks) == 4
    assert len(lines(run)) == 16
    [environment] = run.documents("environments")
    assert {row["environment"] for row in run.rows()} == {environment}


@pytest.mark.parametrize("pool", ["threads", "processes"])
def test_any_executor(run, pool):
    cells = planned()
    make = {
        "threads": lambda: ThreadPoolExecutor(3),
        "processes": lambda: ProcessPoolExecutor(1, mp_context=get_context("spawn")),
    }[pool]
    with make() as executor:
        run_cells(run, cells, executor, in_flight=3)
    assert statuses(run) == {"ok": 16}
    for row in run.rows():
        [again] = measure_task(type("Task", (), {"cells": ((row["id"], cells[row["id"]]),)}))
        assert again["outputs"] == row["outputs"]


def test_a_death_costs_the_guilty_cell_alone(run, kernels):
    cells = planned(kernels=f"{kernels}:good", seeds=1)

    def guilty(task):
        return any(cell.candidate.name.endswith(":good") for _, cell in task.cells)

    progress = run_cells(run, cells, Inline(guilty), in_flight=2)
    assert (progress.done, progress.failed) == (8, 2)
    failed = [row for row in run.rows() if row["status"] == "failed"]
    assert {row["cell"]["candidate"] for row in failed} == {f"kernel:{kernels}:good"}
    assert {row["error"] for row in failed} == {"WorkerDiedError: killed by signal 6"}


def test_failed_cells_are_tried_again_and_skipped_ones_are_not(run, kernels):
    cells = planned(kernels=f"{kernels}:raises", seeds=1, axes={
        "seq_len": 8, "heads": 1, "head_dim": 8, "mask": "none,causal"})  # fmt: skip
    progress = run_cells(run, cells, Inline(), in_flight=1)
    assert (progress.done, progress.failed, progress.skipped) == (8, 1, 1)
    executor = Inline()
    progress = run_cells(run, cells, executor, in_flight=1)
    assert (progress.before, progress.done) == (7, 1)
    assert sum(len(task.cells) for task in executor.tasks) == 1


def test_timing_comes_last_and_alone(run):
    executor = Inline()
    run_cells(run, planned(timing=True, seeds=1), executor, in_flight=4)
    kinds = [{cell.kind for _, cell in task.cells} for task in executor.tasks]
    assert kinds == [{"accuracy"}] * 2 + [{"timing"}] * 2


def test_what_is_an_error_and_leaves_nothing_claimed(run):
    cells = planned(seeds=1)
    with pytest.raises(UsageError, match="in_flight=0"):
        run_cells(run, cells, Inline(), in_flight=0)
    with pytest.raises(RunError, match="opened for reading"):
        run_cells(Run.open(run.path), cells, Inline(), in_flight=1)

    def stop(progress):
        if progress.done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_cells(run, cells, Inline(), in_flight=1, tell=stop)
    assert 0 < len(run.finished_ids()) < len(cells)
    run_cells(run, cells, Inline(), in_flight=1)
    assert len(lines(run)) == len(run.finished_ids()) == len(cells)


def test_the_second_operator(run):
    cells = identified(make_plan({"sweep": [{
        "operator": "softmax", "baseline": "torch-softmax", "seeds": 1,
        "recipes": list(_recipes("softmax")), "formats": "bf16,fp32,fp64",
        "axes": {"rows": 4, "length": "32,64", "tile": "8,16"},
    }]}).cells())  # fmt: skip
    progress = run_cells(run, cells, Inline(), in_flight=1)
    assert progress.failed == progress.skipped == 0
    for row in run.rows():
        assert row["outputs"]["y"]["nonfinite_new"] == 0
        if row["cell"]["candidate"] == "kernel:torch-softmax":
            assert row["ran"] == ["aten::_softmax"]
            assert row["outputs"]["y"]["err_ratio"] == pytest.approx(1)


def _recipes(operator):
    from roundoff.operators import OPERATORS

    return OPERATORS[operator].recipes
