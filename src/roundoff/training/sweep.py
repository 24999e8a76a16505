"""Run an experiment into a run directory: a repeat a worker, killed and resumed at any moment."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from roundoff.errors import RoundoffError, UnsupportedError
from roundoff.executors import run_tasks
from roundoff.records import SCHEMA
from roundoff.store import Run
from roundoff.store.disk import replace_file
from roundoff.store.json import digest
from roundoff.training.experiment import Experiment, Repeat, environment
from roundoff.training.lab import Lab

__all__ = ["STATE", "finished", "run_repeats", "state_bytes"]

STATE = "state"
"""The folder of a run in which repeats that are not finished keep their state."""
PROGRESS = "progress"


@dataclass(frozen=True)
class _Task:
    """What is handed to a worker: a repeat, and where it keeps its state."""

    id: str
    repeat: Repeat
    folder: Path


def run_repeats(
    run: Run,
    experiment: Experiment,
    executor: Executor,
    *,
    in_flight: int,
    tell: Callable[[int], None] = lambda _: None,
) -> None:
    """Train every repeat that the run does not have yet; each is one line of the run.

    `tell` hears, about once a second, how many steps of the whole experiment are taken. A repeat
    that fails is a line that says so.
    """
    repeats = experiment.all_repeats()
    folder = run.path / STATE
    with run.writer() as writer, _counting(run, experiment, tell):
        known = environment(experiment.threads)
        run.write_document(f"environments/{digest(known)}.json", known)
        tasks = (_Task(i, repeats[i], folder / i) for i in repeats if writer.claim([i]))
        for task, outcome in run_tasks(executor, tasks, train, in_flight=in_flight):
            writer.append(_record(task, outcome))
            shutil.rmtree(task.folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def train(task: _Task) -> dict[str, Any]:
    """Train one repeat in this process."""
    started, before = time.perf_counter(), torch.get_num_threads()
    torch.set_num_threads(task.repeat.experiment.threads)
    task.folder.mkdir(parents=True, exist_ok=True)
    try:
        found = Lab(task.repeat, task.folder).run(_teller(task.folder / PROGRESS))
    finally:
        torch.set_num_threads(before)
    return {**found, "elapsed": round(time.perf_counter() - started, 2)}


def finished(run: Run, experiment: Experiment) -> list[dict[str, Any]]:
    """The lines of the experiment's repeats that went well, in their order."""
    found = {row["id"]: row for row in run.rows() if row["status"] == "ok"}
    return [found[i] for i in experiment.all_repeats() if i in found]


def state_bytes(parameters: int, arms: int, in_flight: int) -> int:
    """What the state of `in_flight` repeats takes on the disk at most, while it is replaced.

    Four bytes for each weight and its two moments, for every arm and the baseline, twice.
    """
    return 2 * in_flight * (arms + 1) * parameters * 3 * 4


def _record(task: _Task, outcome: dict[str, Any] | Exception) -> dict[str, Any]:
    head = {
        "schema": SCHEMA,
        "id": task.id,
        "environment": digest(environment(task.repeat.experiment.threads)),
        "training": {**task.repeat.experiment.to_record(), "repeat": task.repeat.number},
    }
    if not isinstance(outcome, Exception):
        return {**head, "status": "ok", **outcome}
    if not isinstance(outcome, RoundoffError):
        text = f"{type(outcome).__name__}: {outcome}".splitlines()[0]
    else:
        text = str(outcome)
    status = "skipped" if isinstance(outcome, UnsupportedError) else "failed"
    return {**head, "status": status, "error": text}


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
    ids, reader = list(experiment.all_repeats()), Run.open(run.path)
    over = threading.Event()

    def count() -> int:
        done = reader.finished_ids()
        return sum(
            experiment.steps if i in done else _steps(run.path / STATE / i / PROGRESS) for i in ids
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
