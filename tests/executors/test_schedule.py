"""Tasks over any executor, and shards on which machines agree."""

import os
import threading
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import pytest
from hypothesis import given
from hypothesis import strategies as st

from roundoff.errors import CellError, UsageError, WorkerDiedError
from roundoff.executors import LocalExecutor, run_tasks, shard

EXECUTORS = {
    "local": lambda: LocalExecutor(2),
    "threads": lambda: ThreadPoolExecutor(2),
    "processes": lambda: ProcessPoolExecutor(2, mp_context=get_context("spawn")),
}


@pytest.fixture(params=EXECUTORS)
def executor(request):
    with EXECUTORS[request.param]() as made:
        yield made


def test_every_task_comes_back_once(executor):
    results = dict(run_tasks(executor, range(50), abs, in_flight=4))
    assert results == {n: n for n in range(50)}


def test_an_exception_takes_the_place_of_a_result(executor):
    results = dict(run_tasks(executor, ["1", "x", "2"], int, in_flight=2))
    assert isinstance(results.pop("x"), ValueError)
    assert results == {"1": 1, "2": 2}


def test_no_tasks(executor):
    assert list(run_tasks(executor, [], abs, in_flight=4)) == []


def test_a_foreign_pool_that_breaks_is_no_crash():
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        results = dict(run_tasks(executor, [3, 4, 5, 6], os._exit, in_flight=2))
    assert set(results) == {3, 4, 5, 6}
    assert {type(result) for result in results.values()} == {WorkerDiedError}


def test_the_local_pool_loses_one_of_eight():
    abort = "__import__('os').abort()"
    with LocalExecutor(2) as executor:
        results = dict(run_tasks(executor, ["1", "2", "3", abort, *"5678"], eval, in_flight=4))
    assert isinstance(results.pop(abort), WorkerDiedError)
    assert results == {text: int(text) for text in "1235678"}


def test_results_come_in_the_order_of_completion():
    gate = threading.Event()

    def work(name):
        if name == "slow":
            gate.wait(10)
        return name

    with ThreadPoolExecutor(2) as executor:
        order = run_tasks(executor, ["slow", "fast"], work, in_flight=2)
        assert next(order) == ("fast", "fast")
        gate.set()
        assert list(order) == [("slow", "slow")]


def test_no_more_than_in_flight_and_tasks_are_read_late():
    taken = []

    def endless():
        n = 0
        while True:
            taken.append(n)
            yield n
            n += 1

    with ThreadPoolExecutor(8) as executor:
        results = run_tasks(executor, endless(), abs, in_flight=3)
        for seen in range(10):
            next(results)
            assert len(taken) <= seen + 3
        results.close()


def test_closing_cancels_what_has_not_begun():
    gate = threading.Event()
    with ThreadPoolExecutor(1) as executor:
        begun = []

        def work(n):
            begun.append(n)
            return n if n == 0 else gate.wait(10)

        results = run_tasks(executor, range(5), work, in_flight=5)
        assert next(results) == (0, 0)
        results.close()
        gate.set()
    assert len(begun) <= 2


class Stub(ThreadPoolExecutor):
    """An executor whose futures end as told."""

    def submit(self, fn, /, *args, **kwargs):
        future = Future()
        if args[0] == "cancelled":
            future.cancel()
            future.set_running_or_notify_cancel()
        else:
            future.set_exception(SystemExit(3))
        return future


def test_cancelled_and_exiting_tasks_are_cell_errors():
    with Stub() as executor:
        results = dict(run_tasks(executor, ["cancelled", "exit"], str, in_flight=2))
    assert {str(error) for error in results.values()} == {
        "the task was cancelled",
        "the task raised SystemExit(3)",
    }
    assert {type(error) for error in results.values()} == {CellError}


def test_in_flight_is_checked_at_the_call():
    with ThreadPoolExecutor() as executor, pytest.raises(UsageError, match="in_flight=0"):
        run_tasks(executor, [], abs, in_flight=0)


@given(st.lists(st.text(), unique=True), st.integers(1, 9))
def test_shards_are_disjoint_and_complete(items, count):
    parts = [shard(items, f"{i}/{count}") for i in range(1, count + 1)]
    assert sorted(item for part in parts for item in part) == sorted(items)
    for part in parts:
        assert part == [item for item in items if item in part]


@given(st.sets(st.text()), st.sets(st.text()))
def test_a_grown_plan_moves_nothing(items, more):
    assert set(shard(items, "2/3")) <= set(shard(items | more, "2/3"))


def test_shards_by_a_key():
    cells = [{"id": str(n)} for n in range(20)]
    ids = [cell["id"] for cell in shard(cells, "1/3", key=lambda cell: cell["id"])]
    assert ids == shard([str(n) for n in range(20)], "1/3")


@pytest.mark.parametrize("part", ["0/2", "3/2", "1", "1/0", "a/b", "", "-1/2", "1/2/3", "1/2\n"])
def test_a_wrong_shard_is_refused(part):
    with pytest.raises(UsageError, match="such as 2/8"):
        shard([], part)
