"""Run a plan into a run directory: claim, hand out, append; resumable at any moment."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass

from roundoff.bench.identity import cell_id, environment_digest, environment_of
from roundoff.bench.measure import Task, measure_task
from roundoff.bench.plan import groups
from roundoff.executors import run_tasks
from roundoff.records import Cell, Measurement
from roundoff.store import Run, Writer
from roundoff.subjects import in_one_line

__all__ = ["Progress", "identified", "run_cells"]

LARGEST_TASK = 16
"""Cells handed out together: enough to share golden, few enough that little is redone."""


@dataclass(slots=True)
class Progress:
    """How far a sweep is: cells that the run had before, and those done since."""

    total: int
    before: int = 0
    done: int = 0
    failed: int = 0
    skipped: int = 0


def identified(cells: list[Cell]) -> dict[str, Cell]:
    """The cells by id, in their order."""
    return {cell_id(cell): cell for cell in cells}


def run_cells(
    run: Run,
    cells: dict[str, Cell],
    executor: Executor,
    *,
    in_flight: int,
    tell: Callable[[Progress], None] = lambda _: None,
) -> Progress:
    """Measure every cell that the run does not have yet; timing cells come last, one at a time.

    Safe to kill at any moment and to run in several processes at once: a cell is claimed
    before it is handed out and appended as one line when it is done. `in_flight` tasks at most
    are with the executor at a time; `tell` is called at the start and after each task.

    A cell that cannot be measured, or whose worker dies, is a line that says so, and no error.
    Errors: `RunError` where the run was opened for reading only or its folder cannot be written;
    `UsageError` for `in_flight` below 1. What the executor or `tell` raises goes through, with all
    that is finished on the disk and the claims given up.
    """
    progress = Progress(len(cells), before=len(run.finished_ids() & cells.keys()))
    tell(progress)
    with run.writer() as writer:
        _write_environments(run, cells)
        for kind, parallel in (("accuracy", in_flight), ("timing", 1)):
            wanted = {i: c for i, c in cells.items() if c.kind == kind}
            tasks = _claimed(writer, wanted)
            for task, outcome in run_tasks(executor, tasks, measure_task, in_flight=parallel):
                _keep(writer, executor, task, outcome, progress)
                tell(progress)
    return progress


def _write_environments(run: Run, cells: dict[str, Cell]) -> None:
    known = run.documents("environments")
    for cell in {(c.device, c.threads): c for c in cells.values()}.values():
        digest = environment_digest(cell)
        if digest not in known:
            run.write_document(f"environments/{digest}.json", environment_of(cell).to_record())


def _claimed(writer: Writer, cells: dict[str, Cell]) -> Iterator[Task]:
    """Tasks of cells that nobody has done or has in hand, claimed when they are asked for."""
    by_cell = {id(cell): i for i, cell in cells.items()}
    for group in groups(list(cells.values())):
        for start in range(0, len(group), LARGEST_TASK):
            part = group[start : start + LARGEST_TASK]
            free = set(writer.claim([by_cell[id(cell)] for cell in part]))
            task = tuple((i, cell) for cell in part if (i := by_cell[id(cell)]) in free)
            if task:
                yield Task(task)


def _keep(
    writer: Writer,
    executor: Executor,
    task: Task,
    outcome: list[dict[str, object]] | Exception,
    progress: Progress,
) -> None:
    if isinstance(outcome, Exception):
        outcome = list(_one_by_one(executor, task, outcome))
    for record in outcome:
        writer.append(record)
        progress.done += 1
        progress.skipped += record["status"] == "skipped"
        progress.failed += record["status"] == "failed"
    writer.release([i for i, _ in task.cells])


def _one_by_one(executor: Executor, task: Task, error: Exception) -> Iterator[dict[str, object]]:
    """After a death, each cell alone, so that the guilty one costs only itself."""
    alone = [Task((cell,)) for cell in task.cells]
    if len(alone) == 1:
        yield _failed(task, error)
        return
    for part, outcome in run_tasks(executor, alone, measure_task, in_flight=1):
        if isinstance(outcome, Exception):
            yield _failed(part, outcome)
        else:
            yield from outcome


def _failed(task: Task, error: Exception) -> dict[str, object]:
    id_, cell = task.cells[0]
    return Measurement(
        id=id_, cell=cell, environment=environment_digest(cell), status="failed",
        error=in_one_line(error),
    ).to_record()  # fmt: skip
