"""`roundoff study`: measure a paper's claims, judge each, and write the report."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from roundoff.bench.plan import Plan
from roundoff.bench.sweep import identified
from roundoff.cli.planned import show_plan
from roundoff.cli.running import Running, carry_out
from roundoff.cli.terminal import (
    command_line,
    messages,
    print_json,
    print_table,
    progress_bar,
    say_again,
)
from roundoff.cli.train import carry_out_training, tell_missing
from roundoff.errors import MissingLibraryError, UnsupportedError
from roundoff.live.trained import watched_line
from roundoff.operators import OPERATORS
from roundoff.operators.inputs import check_seed
from roundoff.records import SCHEMA, Cell, SubjectName, Verdict
from roundoff.store import Run
from roundoff.store.json import canonical
from roundoff.store.tables import frame
from roundoff.studies import STUDIES
from roundoff.studies.study import Claim, Study
from roundoff.subjects import resolve_subject
from roundoff.training.sweep import finished, missing, step_times

__all__ = ["study_command"]


def study_command(
    name: str,
    /,
    *,
    preset: str = "quick",
    seed: int = 0,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    training: bool = True,
    report: bool = True,
    running: Running = Running(),
) -> int:
    """Measure the claims of a paper, with a verdict for each and a report.

        roundoff study flash-attention

    Parameters
    ----------
    name:
        flash-attention (the claims of the paper), low-precision-failure (why bf16 training fails)
        or recipes (do recipes follow their kernels).
    preset:
        quick (minutes on two cores), full (hours for flash-attention, about 15 minutes for
        recipes), or gpu (flash-attention with CUDA's kernels).
    seed:
        The first seed of the draws.
    dry_run:
        Show the plan and its cost, and measure nothing.
    training:
        Also train, for the claims on training and on inputs of a trained model.
    report:
        Write report.html and pictures beside the results.
    """
    study = STUDIES[name]
    check_seed(seed)
    plan = _seeded(study.plan(preset), seed)
    if dry_run:
        show_plan(plan, json=running.json)
        if study.files and training:
            messages().print(f"and cells on {study.files.doc}, which are made first", style="dim")
        return 0
    cells = _that_run_here(plan.cells())
    folder = running.output or Path("runs") / f"{name}-{preset}"
    started = time.perf_counter()
    run, _, progress = carry_out(
        cells, running, folder=folder, manifest={"study": name, "preset": preset}
    )
    on_files = _cells_on_files(study, preset, folder) if training else []
    if on_files:
        run, _, more = carry_out(on_files, running, folder=folder, manifest={})
        progress.done, progress.failed = progress.done + more.done, progress.failed + more.failed
    records = _planned(run, cells + on_files)
    missing = sum(record["status"] == "missing" for record in records)
    if running.shard and missing:
        messages().print(f"{missing} of {len(records)} cells are left to the other shards")
        return 0
    verdicts = study.judge(frame(records), files=bool(on_files))
    if training:
        verdicts += _train(study, preset, seed, folder, running)
        verdicts += _watch(study, preset, seed, folder)
    judged = {
        "schema": SCHEMA, "study": name, "source": study.source, "preset": preset,
        "command": command_line(), "claims": [v.to_record() for v in verdicts],
    }  # fmt: skip
    news = _keep(run, judged) or progress.done > 0
    pages = _report(run, again=news) if report else []
    _show(run, verdicts, pages, running, time.perf_counter() - started)
    return 2 if progress.failed and any(v.outcome == "cannot tell" for v in verdicts) else 0


def _seeded(plan: Plan, seed: int) -> Plan:
    """The plan with another first seed."""
    sweeps = (sweep.model_copy(update={"first_seed": seed}) for sweep in plan.sweep)
    return plan.model_copy(update={"sweep": tuple(sweeps)})


def _cells_on_files(study: Study, preset: str, folder: Path) -> list[Cell]:
    """The cells on files of inputs, which are made now where the folder does not have them."""
    if study.files is None:
        return []
    try:
        with progress_bar(study.files.doc, 1) as advance:
            paths = study.files.make(preset, folder, advance)
    except (UnsupportedError, MissingLibraryError) as error:
        _tell_left_out(study.files.claims, error)
        return []
    return _that_run_here(study.files.plan(paths).cells())


def _tell_left_out(claims: Sequence[Claim], error: Exception) -> None:
    names = ", ".join(claim.id for claim in claims)
    messages().print(f"left out: {names}: {error}", style="dim", soft_wrap=True)


def _train(study: Study, preset: str, seed: int, folder: Path, running: Running) -> list[Verdict]:
    """The verdicts on training, for which what the run does not have is trained first."""
    if preset not in study.experiments:
        return []
    experiment = replace(study.experiments[preset](), seed=seed)
    try:
        run = carry_out_training(experiment, running, folder=folder, manifest={})
    except (UnsupportedError, MissingLibraryError) as error:
        _tell_left_out(study.training_claims, error)
        return []
    tell_missing(missing(run, experiment))
    return study.judge_training(finished(run, experiment), step_times(run, experiment))


def _watch(study: Study, preset: str, seed: int, folder: Path) -> list[Verdict]:
    """The verdicts on what is watched in training; what the run has already is not done again."""
    if preset not in study.watched:
        return []
    asked = [replace(one, seed=seed) for one in study.watched[preset]()]
    run = Run.create_or_open(folder, manifest={})
    known = run.finished_ids()
    todo = [one for one in asked if one.id not in known]
    steps, done = sum(one.steps for one in todo), 0
    try:
        with run.writer() as writer, progress_bar("watched in training, steps", steps) as advance:
            for one in todo:
                writer.append(watched_line(one, lambda n, done=done: advance(done + n)))
                done += one.steps
    except (UnsupportedError, MissingLibraryError) as error:
        _tell_left_out(study.watched_claims, error)
        return []
    found = {row["id"]: row for row in run.rows()}
    lines = [found[one.id] for one in asked]
    return [claim.verdict(lines) for claim in study.watched_claims]


def _that_run_here(cells: list[Cell]) -> list[Cell]:
    """The cells whose kernels can run on this machine; what is left out is told, with why."""
    absent: dict[SubjectName, str] = {}
    for name in dict.fromkeys(n for c in cells for n in (c.baseline, c.candidate)):
        try:
            resolve_subject(OPERATORS[cells[0].operator], name)
        except UnsupportedError as error:
            absent[name] = str(error)
            messages().print(f"left out: {error}", style="dim", soft_wrap=True)
    return [c for c in cells if c.baseline not in absent and c.candidate not in absent]


def _planned(run: Run, cells: list[Cell]) -> list[dict[str, Any]]:
    """The run's record of every planned cell; one that is not there yet is `missing`."""
    found = {row["id"]: row for row in run.rows()}
    return [
        found.get(id_) or {"id": id_, "status": "missing", "cell": cell.to_record()}
        for id_, cell in identified(cells).items()
    ]


def _keep(run: Run, judged: dict[str, Any]) -> bool:
    """Store the verdicts; whether they differ from those that the run had."""
    name = "claims.json"
    if (run.path / name).exists() and canonical(run.read_document(name)) == canonical(judged):
        return False
    run.write_document(name, judged)
    return True


def _report(run: Run, *, again: bool) -> list[Path]:
    """Write the report, unless nothing has changed since the one that is there."""
    page = run.path / "report.html"
    if not again and page.exists():
        return [page]
    from roundoff.report import write_report  # noqa: PLC0415 - imports Altair

    return write_report(run)


def _show(
    run: Run, verdicts: list[Verdict], pages: list[Path], running: Running, seconds: float
) -> None:
    if running.json:
        print_json("study", {
            "run": str(run.path), "seconds": round(seconds, 1),
            "claims": [v.to_record() for v in verdicts], "report": [str(p) for p in pages],
        })  # fmt: skip
        return
    rows = [(v.claim, f"{v.text} ({v.claimed})", _measured(v), v.outcome) for v in verdicts]
    print_table("", ["claim", "paper", "measured", "verdict"], rows)
    console = messages()
    for page in pages[:1]:
        console.print(f"report: {page}")
    console.print(f"{seconds:.0f} s", style="dim")
    say_again(run.path)


def _measured(verdict: Verdict) -> str:
    if not verdict.condition:
        return verdict.measured
    start = "only if " if verdict.outcome == "holds only if" else ""
    return textwrap.dedent(f"{verdict.measured}\n{start}{verdict.condition}")
