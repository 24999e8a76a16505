"""Carrying a plan out from the command line: run directory, workers, progress, summary."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from roundoff.bench.sweep import Progress, identified, run_cells
from roundoff.cli.terminal import command_line, messages, progress_bar
from roundoff.errors import UsageError
from roundoff.executors import LocalExecutor, shard
from roundoff.records import Cell
from roundoff.store import Run

__all__ = ["Running", "carry_out"]


@Parameter(name="*")
@dataclass(frozen=True)
class Running:
    """Options of every command that measures.

    Parameters
    ----------
    output: Path
        The run directory; an existing run is completed, not repeated.
    jobs: int
        Worker processes (default: the number of cores).
    timeout: float
        Seconds after which a worker that does not answer is ended.
    shard: str
        Do the i-th of n parts of the plan, as "i/n"; all parts may share one output.
    json: bool
        Print one JSON document on standard output, and messages on standard error.
    """

    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None
    jobs: Annotated[int | None, Parameter(name=["--jobs", "-j"])] = None
    timeout: float = 600.0
    shard: str | None = None
    json: Annotated[bool, Parameter(negative="")] = False

    @property
    def workers(self) -> int:
        """How many processes work at a time; a `UsageError` for none."""
        jobs = (os.cpu_count() or 1) if self.jobs is None else self.jobs
        if jobs < 1:
            raise UsageError(f"--jobs {jobs}: expected at least 1")
        return jobs


def carry_out(
    cells: list[Cell], running: Running, *, folder: Path, manifest: Mapping[str, Any]
) -> tuple[Run, dict[str, Cell], Progress]:
    """Measure the cells that the run in `folder` does not have, with a progress bar."""
    # All that can be wrong with what was asked comes first: a refused command leaves no folder.
    jobs = running.workers
    if not running.timeout > 0:
        raise UsageError(f"--timeout {running.timeout:g}: expected seconds above 0")
    threads = max((c.threads for c in cells), default=1)
    executor = LocalExecutor(jobs, timeout=running.timeout, threads=threads)
    named = identified(cells)
    if running.shard:
        named = {i: named[i] for i in shard(named, running.shard)}
    run = Run.create_or_open(folder, manifest={"command": command_line(), **manifest})
    if named.keys() <= run.finished_ids():
        progress = Progress(len(named), before=len(named))
        _tell_failures(run, named, progress)
        return run, named, progress
    with executor, progress_bar("measuring", len(named)) as advance:
        progress = run_cells(
            run, named, executor, in_flight=jobs, tell=lambda p: advance(p.before + p.done)
        )
    _tell_failures(run, named, progress)
    return run, named, progress


def _tell_failures(run: Run, named: Mapping[str, Cell], progress: Progress) -> None:
    console = messages()
    for problem in run.problems:
        console.print(f"roundoff: {problem}", style="yellow", markup=False, soft_wrap=True)
    if not (progress.failed or progress.skipped):
        return
    told: set[str] = set()
    for row in run.rows():
        error = row.get("error")
        if row["id"] in named and error and error not in told and len(told) < 10:
            told.add(error)
            how, style = ("skipped", "dim") if row["status"] == "skipped" else ("failed", "red")
            text = " ".join(f"{how}: {row['cell']['candidate']}: {error}".split())
            console.print(text, style=style, markup=False, soft_wrap=True)
    console.print(f"{progress.failed} cells failed, {progress.skipped} were skipped")
