"""`roundoff train`: paired runs, yardsticks, noise or bias."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from roundoff.cli.running import Running
from roundoff.cli.terminal import (
    command_line,
    messages,
    print_json,
    print_table,
    progress_bar,
    say_again,
)
from roundoff.errors import UsageError
from roundoff.executors import LocalExecutor
from roundoff.store import Run
from roundoff.store.json import digest
from roundoff.training.experiment import Experiment
from roundoff.training.lab import BASELINE
from roundoff.training.sweep import (
    Missing,
    asked,
    finished,
    missing,
    run_repeats,
    step_times,
    total_steps,
    tried,
)
from roundoff.training.verdict import (
    METRIC,
    Direct,
    Unit,
    arms_of,
    broken,
    direct_errors,
    distance,
    growth,
    losses,
    skipped,
    steps_of,
    units,
    values,
)

__all__ = ["carry_out_training", "tell_missing", "train_command"]


def train_command(
    *,
    workload: str = "text",
    baseline: str | None = None,
    candidate: str = "",
    yardsticks: str = "ulp,rerun,data-order,seed,bf16",
    format: str = "fp32",
    steps: int = 300,
    repeats: int = 6,
    sampled: int = 150,
    seed: int = 0,
    threads: int = 1,
    long: int = 0,
    timing: Annotated[bool, Parameter(negative="")] = False,
    device: str = "cpu",
    report: bool = True,
    running: Running = Running(),
) -> int:
    """Train a baseline and arms that differ from it in one thing each, and compare.

    Parameters
    ----------
    workload:
        text, text-to-image (roundoff list workloads), or yours: module:function that returns
        (model, optimizer, batches, loss).
    baseline:
        The attention of the baseline (default: the model's own).
    candidate:
        What is to be judged, comma-separated: attentions (torch-cpu-flash, fa2@bf16), formats
        (bf16), or functions of yours that change a model, as module:function.
    yardsticks:
        What it is measured by, comma-separated: ulp, rerun, data-order, seed, fp16, bf16, or
        anything that a candidate can be; ARM@STEP starts at a later step (roundoff list arms).
    format:
        Autocast of all arms: fp32, bf16 or fp16.
    steps:
        Length of each run.
    repeats:
        Pairs of seeds; intervals are over them.
    sampled:
        Steps at which the candidates' direct error is taken; 0: none.
    seed:
        The first seed.
    threads:
        Threads of each worker.
    long:
        Also one baseline run of so many steps, whose samples the report shows.
    timing:
        Also take time and peak memory of a step with each candidate, beside the baseline's.
    device:
        Where all of it trains: cpu or cuda.
    report:
        Write report.html and pictures beside the results; --no-report leaves them out.
    """
    if running.shard:
        raise UsageError(
            "--shard is not for training: machines that share an --output share the repeats; "
            "start the same command on each"
        )
    experiment = Experiment(
        workload, baseline, _names(candidate), _names(yardsticks),
        format, steps, repeats, seed, sampled, threads, long, timing, device,
    )  # fmt: skip
    if not (experiment.arms or experiment.long):
        raise UsageError(
            "nothing to train beside the baseline: name a --candidate or --yardsticks "
            "(roundoff list arms), or the length of one --long run"
        )
    folder = running.output or Path("runs") / f"train-{digest(experiment.to_record())[:8]}"
    run = carry_out_training(experiment, running, folder=folder, manifest={})
    records = finished(run, experiment)
    pages = _report(run) if report and records else []
    _show(run, experiment, records, pages, running)
    lost, wrong = missing(run, experiment), broken(records)
    tell_missing(lost)
    for b in wrong:
        messages().print(str(b), style="yellow", markup=False, soft_wrap=True)
    say_again(folder)
    return 2 if lost or any(b.arm == BASELINE.name and b.lasts for b in wrong) else 0


def carry_out_training(
    experiment: Experiment, running: Running, *, folder: Path, manifest: dict[str, Any]
) -> Run:
    """Train the repeats that the run in `folder` does not have, with a progress bar."""
    jobs = running.workers
    if not (folder / "manifest.json").exists():
        tried(experiment)
    kind = {"command": command_line(), "training": experiment.to_record(), **manifest}
    run = Run.create_or_open(folder, manifest=kind)
    if asked(experiment).keys() <= run.finished_ids():
        return run
    messages().print(_told_before(experiment, jobs, folder), style="dim", soft_wrap=True)
    executor = LocalExecutor(jobs, timeout=None, threads=experiment.threads)
    with executor, progress_bar("training, steps", total_steps(experiment)) as advance:
        run_repeats(run, experiment, executor, in_flight=jobs, tell=advance)
    return run


def tell_missing(lost: Sequence[Missing]) -> None:
    """What the verdict lacks, and why."""
    for m in lost:
        text = f"missing in the verdict: {', '.join(m.names)} ({m.status}): {m.error}"
        messages().print(text, style="red", markup=False, soft_wrap=True)


def _told_before(experiment: Experiment, jobs: int, folder: Path) -> str:
    arms = len(experiment.arms)
    return (
        f"{_repeats(experiment.repeats)} of {arms + 1} arms and {experiment.steps} steps, "
        f"{jobs} at a time; their state is kept in {folder}/state until a repeat is "
        f"finished (two copies of weights and moments an arm), and the same command goes "
        "on after an interruption"
    )


def _repeats(n: int) -> str:
    return f"{n} repeat" + "s" * (n != 1)


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def _report(run: Run) -> list[Path]:
    from roundoff.report import write_report  # noqa: PLC0415 - imports Altair

    return write_report(run)


def _show(
    run: Run,
    experiment: Experiment,
    records: Sequence[dict[str, Any]],
    pages: Sequence[Path],
    running: Running,
) -> None:
    if running.json:
        print_json("train", _document(run, experiment, records, pages))
        return
    if not records:
        messages().print("no repeat was finished", style="red")
        return
    steps = steps_of(records)
    _show_distances(experiment, records, _spread(steps, 5))
    _show_units(experiment, records, _spread(steps, 3))
    _show_direct(experiment, records)
    _show_times(step_times(run, experiment))
    for page in pages[:1]:
        messages().print(f"report: {page}")


def _spread(steps: list[int], columns: int) -> list[int]:
    """As many of the compared steps as there are columns for, the first and the last among them."""
    if len(steps) <= columns:
        return steps
    at = [round(i * (len(steps) - 1) / (columns - 1)) for i in range(columns)]
    return [steps[i] for i in at]


def _show_distances(
    experiment: Experiment, records: Sequence[dict[str, Any]], steps: list[int]
) -> None:
    arms = [*arms_of(records), BASELINE.name]
    skips = [skipped(records, arm) for arm in arms]
    scaled = any(n is not None for n in skips)
    rows = [
        (arm, *(_distance(records, arm, s) for s in steps), _power(records, arm),
         _fall(records, arm), *(["" if n is None else str(n)] * scaled))
        for arm, n in zip(arms, skips, strict=True)
    ]  # fmt: skip
    held = _repeats(experiment.repeats)
    if len(records) < experiment.repeats:
        held = f"{len(records)} of {held}"
    title = f"distance of the weights from the baseline's, rel_l2, {held}"
    columns = ["arm!", *(f"step {s}>" for s in steps), "growth>", "loss>", *["skipped>"] * scaled]
    print_table(title, columns, rows)
    legend = "growth: d log(distance) / d log(step) over the last two compared steps"
    legend += "; skipped: steps of all repeats that loss scaling left out" * scaled
    messages().print(legend, style="dim", soft_wrap=True)


def _distance(records: Sequence[dict[str, Any]], arm: str, step: int) -> str:
    """The mean over repeats; on logarithms there is none where some repeats have 0."""
    held = values(records, arm, step, METRIC)
    if not held:
        return ""
    zeros = sum(x == 0 for x in held.values())
    if 0 < zeros < len(held):
        return f"0 in {zeros} of {len(held)}"
    return _number(distance(records, arm, step).estimate)


def _fall(records: Sequence[dict[str, Any]], arm: str) -> str:
    """The first loss and the last, mean over repeats."""
    held = losses(records, arm)
    return f"{held[0][1]:.3g} to {held[-1][1]:.4g}"


def _power(records: Sequence[dict[str, Any]], arm: str) -> str:
    found = growth(records, arm)
    power = found[-1].power if found else None
    return "" if power is None else f"{power.estimate:.1f}"


def _show_units(
    experiment: Experiment, records: Sequence[dict[str, Any]], steps: list[int]
) -> None:
    if not (experiment.candidates and experiment.yardsticks):
        return
    found = {
        (u.candidate, u.yardstick, u.step): u
        for u in units(records, experiment.candidates, experiment.yardsticks, steps=steps)
    }
    rows = [
        (candidate, yardstick, *(_ratio(found[candidate, yardstick, s]) for s in steps))
        for candidate in experiment.candidates
        for yardstick in experiment.yardsticks
    ]
    columns = ["candidate!", "in units of!", *(f"step {s}>" for s in steps)]
    title = "candidates in units of yardsticks (×÷: factor to either end of the 95 % interval)"
    print_table(title, columns, rows)


def _ratio(unit: Unit) -> str:
    """A ratio and the factor to either end of its interval, which is symmetrical on logarithms."""
    if unit.ratio is None:
        for side, name in (("candidate", unit.candidate), ("unit", unit.yardstick)):
            if unit.why.startswith(f"{name} is "):  # names may be longer than the column
                return f"{side} = {unit.why.split()[-1]}"
        return unit.why
    factor = unit.ratio.high / unit.ratio.estimate
    return f"{unit.ratio.estimate:.2g}" + (f" ×÷{factor:.2g}" if math.isfinite(factor) else "")


def _show_direct(experiment: Experiment, records: Sequence[dict[str, Any]]) -> None:
    found = _judged(experiment, records)
    if not found:
        return
    lost = any(d.given_up for d in found)
    rows = [
        (d.candidate, d.of, d.verdict, ", ".join(f"{n} {w}" for w, n in d.counts.items()),
         str(d.samples), *([str(d.given_up)] * lost),
         _number(d.size.estimate), _number(d.gain), _number(d.detectable))
        for d in found
    ]  # fmt: skip
    columns = ["candidate!", "of!", "verdict!", "repeats", "samples>", *["given up>"] * lost,
               "size>", "largest gain>", "detectable>"]  # fmt: skip
    print_table("noise or bias: the direct error, without feedback", columns, rows)
    console = messages()
    legend = "largest gain: of the biased tensors, else of all as one; detectable: of all as one"
    legend += "; given up: samples at which the loss changed its scale" * lost
    console.print(legend, style="dim", soft_wrap=True)
    for d in found:
        if d.verdict == "cannot tell":
            text = f"{d.candidate}, {d.of}: cannot tell: {d.why}"
            console.print(text, style="yellow", soft_wrap=True)


def _judged(experiment: Experiment, records: Sequence[dict[str, Any]]) -> list[Direct]:
    """Noise or bias of every candidate that was sampled, of its gradient and of its update."""
    asked = [(name, of) for name in experiment.candidates for of in ("gradient", "update")]
    return [found for name, of in asked if (found := direct_errors(records, name, of))]


def _show_times(times: Sequence[dict[str, Any]]) -> None:
    if not times:
        return
    rows: list[tuple[str, ...]] = []
    for t in times:
        ratio = f"{t['ratio']:.3f} [{t['low']:.3f}, {t['high']:.3f}]"
        sides = ((t["candidate_name"], t["candidate"], ratio), ("baseline", t["baseline"], ""))
        rows += [(name, *_milliseconds(side), told) for name, side, told in sides]
    columns = ["side!", "forward ms>", "backward ms>", "attention>", "kept MB>",
               "peak MB>", "ratio [95 %]>"]  # fmt: skip
    print_table("time of a step, taken in turn (medians)", columns, rows)


def _milliseconds(side: Mapping[str, Any]) -> tuple[str, ...]:
    step = side["forward"] + side["backward"]
    alone = side["attention_forward"], side["attention_backward"]
    share = "" if None in alone else f"{100 * sum(alone) / step:.0f} %"
    ms = (f"{1e3 * side[name]:.1f}" for name in ("forward", "backward"))
    peak = side["peak"]
    return *ms, share, f"{side['kept'] / 1e6:.1f}", "?" if peak is None else f"{peak / 1e6:.1f}"


def _number(value: float) -> str:
    return "0" if value == 0 else f"{value:.1e}"


def _document(
    run: Run,
    experiment: Experiment,
    records: Sequence[dict[str, Any]],
    pages: Sequence[Path],
) -> dict[str, Any]:
    return {
        "run": str(run.path),
        "experiment": experiment.to_record(),
        "repeats": len(records),
        "missing": [dataclasses.asdict(m) for m in missing(run, experiment)],
        "distances": [
            {"arm": arm, "step": s, **dataclasses.asdict(distance(records, arm, s))}
            for arm in arms_of(records)
            for s in steps_of(records)
        ],
        "broken": [dataclasses.asdict(b) | {"says": str(b)} for b in broken(records)],
        "losses": [
            {"arm": arm, "step": s, "loss": loss}
            for arm in (BASELINE.name, *arms_of(records))
            for s, loss in losses(records, arm)
            if s in steps_of(records)
        ],
        "units": [
            dataclasses.asdict(u)
            for u in units(records, experiment.candidates, experiment.yardsticks)
        ],
        "growth": [dataclasses.asdict(g) for arm in arms_of(records) for g in growth(records, arm)],
        "skipped": {arm: n for arm in (*arms_of(records), BASELINE.name)
                    if (n := skipped(records, arm)) is not None},
        "direct": [dataclasses.asdict(d) for d in _judged(experiment, records)],
        "step_times": step_times(run, experiment),
        "report": [str(page) for page in pages],
    }  # fmt: skip
