"""Run an experiment into a run directory: a repeat a worker, killed and resumed at any moment."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from roundoff.errors import UnsupportedError, UsageError, WorkerDiedError, told
from roundoff.executors import run_tasks
from roundoff.kernels import settings
from roundoff.records import SCHEMA
from roundoff.store import Run
from roundoff.store.disk import replace_file
from roundoff.store.json import digest
from roundoff.training.experiment import Experiment, Repeat, environment
from roundoff.training.lab import BASELINE, Lab, sample_of
from roundoff.training.peak import peak_of
from roundoff.training.runner import Runner
from roundoff.training.timing import time_steps
from roundoff.workloads import load_workload

__all__ = [
    "STATE", "Missing", "asked", "finished", "missing", "run_repeats", "step_times", "total_steps",
    "tried",
]  # fmt: skip

STATE = "state"
"""The folder of a run in which repeats that are not finished keep their state."""
PROGRESS = "progress"


@dataclass(frozen=True)
class _Task:
    """What is handed to a worker, and where it keeps its state meanwhile."""

    id: str
    what: Literal["repeat", "long", "times"]
    experiment: Experiment
    folder: Path
    number: int = 0
    candidate: str = ""


@dataclass(frozen=True)
class Missing:
    """Lines that an experiment asks for and a run lacks, for one reason.

    `status` is failed, skipped (it cannot be done here) or not finished.
    """

    names: tuple[str, ...]
    status: str
    error: str


def tried(experiment: Experiment) -> None:
    """Look for the device and the workload, and take the first step of a user's.

    A `RoundoffError` for what is wrong with them, before anything is written.
    """
    environment(experiment.threads, experiment.device)
    workload = load_workload(experiment.workload)
    if ":" not in experiment.workload:
        return
    try:
        with settings.kept(), Runner(experiment, experiment.seed, BASELINE) as runner:
            runner.gradients(0)
    except UnsupportedError:
        raise
    except Exception as error:
        raise UsageError(f"workload {workload.name!r}, first step: {told(error)}") from error


def run_repeats(
    run: Run,
    experiment: Experiment,
    executor: Executor,
    *,
    in_flight: int,
    tell: Callable[[int], None] = lambda _: None,
) -> None:
    """Train all that the run does not have yet; each repeat is one line of the run.

    The long run and the timings are lines too; timings come last, one at a time. `tell` hears,
    about once a second, how many steps of the whole experiment are taken. What fails is a line
    that says so.
    """
    with run.writer() as writer, _counting(run, experiment, tell):
        known = environment(experiment.threads, experiment.device)
        run.write_document(f"environments/{digest(known)}.json", known)
        for tasks, parallel in (
            (_training(run, experiment), in_flight),
            (_timings(run, experiment), 1),
        ):
            free = (task for task in tasks if writer.claim([task.id]))
            for task, outcome in run_tasks(executor, free, carried_out, in_flight=parallel):
                writer.append(_record(task, outcome))
                shutil.rmtree(task.folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        (run.path / STATE).rmdir()


def _training(run: Run, experiment: Experiment) -> list[_Task]:
    """The longest first, so that none is left alone at the end."""
    folder = run.path / STATE
    tasks = [
        _Task(i, "repeat", experiment, folder / i, number=repeat.number)
        for i, repeat in experiment.all_repeats().items()
    ]
    if experiment.long:
        i = experiment.long_id()
        tasks.insert(0, _Task(i, "long", experiment, folder / i))
    return tasks


def _timings(run: Run, experiment: Experiment) -> list[_Task]:
    return [
        _Task(i, "times", experiment, run.path / STATE / i, candidate=name)
        for i, name in experiment.timing_ids().items()
    ]


def carried_out(task: _Task) -> dict[str, Any]:
    """Do one task in this process."""
    started, before = time.perf_counter(), torch.get_num_threads()
    torch.set_num_threads(task.experiment.threads)
    task.folder.mkdir(parents=True, exist_ok=True)
    tell = _teller(task.folder / PROGRESS)
    try:
        if task.what == "repeat":
            found = Lab(Repeat(task.experiment, task.number), task.folder).run(tell)
        elif task.what == "long":
            found = long_run(task.experiment, tell)
        else:
            found = {"step_times": _times(task.experiment, task.candidate)}
    finally:
        torch.set_num_threads(before)
    return {**found, "elapsed": round(time.perf_counter() - started, 2)}


def _times(experiment: Experiment, candidate: str) -> dict[str, Any]:
    """What `time_steps` finds, with the peak memory of both sides."""
    found = time_steps(experiment, candidate)
    for side, name in (("baseline", experiment.baseline), ("candidate", candidate)):
        found[side]["peak"] = peak_of(experiment, name)
    return found


def long_run(
    experiment: Experiment, tell: Callable[[int], None] = lambda _: None
) -> dict[str, Any]:
    """One baseline run of `experiment.long` steps as a repeat without arms, with its sample."""
    log: list[dict[str, Any]] = []
    with Runner(experiment, experiment.seed, BASELINE) as runner:
        for number in range(experiment.long):
            log.append({"step": number + 1, **runner.gradients(number), **runner.update()})
            tell(number + 1)
        return {
            "log": {BASELINE.name: log}, "distances": {}, "tensors": {}, "direct": {},
            "sample": sample_of(runner), "parameters": runner.parameters,
        }  # fmt: skip


def finished(run: Run, experiment: Experiment) -> list[dict[str, Any]]:
    """The lines of the experiment's repeats that went well, in their order."""
    return _lines(run, experiment.all_repeats())


def step_times(run: Run, experiment: Experiment) -> list[dict[str, Any]]:
    """What `time_steps` found for each candidate that was timed."""
    return [row["step_times"] for row in _lines(run, experiment.timing_ids())]


def asked(experiment: Experiment) -> dict[str, str]:
    """What each line that the experiment asks for is, by id."""
    repeats = {i: f"repeat {repeat.number}" for i, repeat in experiment.all_repeats().items()}
    long = {experiment.long_id(): "the long run"} if experiment.long else {}
    times = {i: f"step times of {name}" for i, name in experiment.timing_ids().items()}
    return repeats | long | times


def missing(run: Run, experiment: Experiment) -> list[Missing]:
    """What the run lacks of the experiment, with the reasons."""
    rows = {row["id"]: row for row in run.rows()}
    lost: dict[tuple[str, str], list[str]] = {}
    for i, name in asked(experiment).items():
        row = rows.get(i, {"status": "not finished", "error": "another process may be at it"})
        if row["status"] != "ok":
            lost.setdefault((row["status"], row["error"]), []).append(name)
    return [Missing(tuple(names), status, error) for (status, error), names in lost.items()]


def total_steps(experiment: Experiment) -> int:
    """Steps of all repeats and the long run, which is what a progress bar counts."""
    return experiment.repeats * experiment.steps + experiment.long


def _lines(run: Run, ids: Iterable[str]) -> list[dict[str, Any]]:
    found = {row["id"]: row for row in run.rows() if row["status"] == "ok"}
    return [found[i] for i in ids if i in found]


def _record(task: _Task, outcome: dict[str, Any] | Exception) -> dict[str, Any]:
    head = {
        "schema": SCHEMA,
        "id": task.id,
        "environment": digest(environment(task.experiment.threads, task.experiment.device)),
        "training": {**_asked(task).to_record(), "repeat": task.number, "what": task.what},
    }
    if not isinstance(outcome, Exception):
        return {**head, "status": "ok", **outcome}
    status = "skipped" if isinstance(outcome, UnsupportedError) else "failed"
    seen = _steps(task.folder / PROGRESS) if isinstance(outcome, WorkerDiedError) else 0
    return {**head, "status": status, "error": told(outcome) + f", after step {seen}" * bool(seen)}


def _asked(task: _Task) -> Experiment:
    """The experiment as far as this task goes: the long run has no arms."""
    if task.what != "long":
        return task.experiment
    alone = {"candidates": (), "yardsticks": (), "repeats": 1, "steps": task.experiment.long}
    return replace(task.experiment, **alone)


def _teller(path: Path) -> Callable[[int], None]:
    """Write the number of steps into a file, at most twice a second."""
    last = 0.0

    def tell(steps: int) -> None:
        nonlocal last
        if time.monotonic() - last > 0.5:
            last = time.monotonic()
            replace_file(path, str(steps))

    return tell


@contextlib.contextmanager
def _counting(run: Run, experiment: Experiment, tell: Callable[[int], None]) -> Generator[None]:
    """Tell the steps taken so far, from the files of the workers, until the block ends."""
    steps = dict.fromkeys(experiment.all_repeats(), experiment.steps)
    if experiment.long:
        steps[experiment.long_id()] = experiment.long
    over, reader = threading.Event(), Run.open(run.path)

    def count() -> int:
        done = reader.finished_ids()
        return sum(
            n if i in done else _steps(run.path / STATE / i / PROGRESS) for i, n in steps.items()
        )

    def watch() -> None:
        while not over.wait(1.0):
            tell(count())

    watcher = threading.Thread(target=watch, name="roundoff-progress", daemon=True)
    tell(count())
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        tell(count())


def _steps(path: Path) -> int:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return 0
