"""Measure cells: draw, compute golden, baseline and candidate, and compare. No files, no processes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from roundoff.bench.identity import cell_id, environment_digest
from roundoff.bench.subjects import KernelSubject, RecipeSubject, Result, resolve_subject
from roundoff.errors import CellError, GoldenError, UnsupportedError
from roundoff.formats import Format, get_format, round_to
from roundoff.metrics import floor, measure_deviation, mismatch_rate
from roundoff.operators import OPERATORS
from roundoff.operators.protocol import Operator, Outputs, Problem
from roundoff.records import Cell, Measurement

__all__ = ["Task", "measure", "measure_task"]

FLOOR_METRICS = ("rmse", "max_abs_err", "mean_abs_err", "rel_l2", "ulp_mean", "mismatch_rate")
GOLDEN_MARGIN = 2.0**8
"""How many times finer than the output's format golden must be to judge it."""


@dataclass(frozen=True, slots=True)
class Task:
    """Cells that share a problem, with their ids: what is handed to a worker."""

    cells: tuple[tuple[str, Cell], ...]


@dataclass(frozen=True, slots=True)
class _Truth:
    """A problem with its golden; `rest` is what rounding golden to float64 left out."""

    problem: Problem
    golden: Outputs
    rest: Outputs | None
    condition: dict[str, float]


def measure_task(task: Task) -> list[dict[str, Any]]:
    """Measure all cells of a task; a cell that fails costs only itself."""
    torch.set_num_threads(task.cells[0][1].threads)
    return [m.to_record() for m in measure(task.cells)]


def measure(cells: Sequence[tuple[str, Cell]]) -> Iterator[Measurement]:
    """Measure cells of one problem, drawing and computing golden and baseline once."""
    first = cells[0][1]
    operator = OPERATORS[first.operator]
    shared: _Shared | None = None
    for id_, cell in cells:
        started = time.perf_counter()
        try:
            if cell_id(cell) != id_:
                raise CellError("the kernel or the environment changed while the run was under way")
            shared = shared or _Shared(operator, first)
            measured = _one(operator, cell, id_, shared)
        except UnsupportedError as error:
            measured = Measurement(id_, cell, environment_digest(cell), "skipped", error=str(error))
        except Exception as error:
            text = f"{type(error).__name__}: {error}".splitlines()[0]
            measured = Measurement(id_, cell, environment_digest(cell), "failed", error=text)
        yield replace(measured, elapsed=round(time.perf_counter() - started, 4))


class _Shared:
    """What cells of one problem have in common."""

    def __init__(self, operator: Operator, cell: Cell) -> None:
        format = get_format(cell.format)
        drawn = operator.draw(cell.parameters, format, cell.seed)
        self.problem = _moved(drawn, cell.device)
        self.truth: _Truth | None = None
        self.baselines: dict[str, Result] = {}

    def judged(self, operator: Operator) -> _Truth:
        """Golden, computed when the first cell asks for it."""
        if self.truth is None:
            self.truth = _truth(operator, self.problem)
        return self.truth


def _moved(problem: Problem, device: str) -> Problem:
    if device == "cpu":
        return problem
    inputs = {name: x.to(device) for name, x in problem.inputs.items()}
    rows = None if problem.rows is None else problem.rows.to(device)
    return replace(problem, inputs=inputs, rows=rows)


def _truth(operator: Operator, problem: Problem) -> _Truth:
    golden, condition = operator.golden(problem)
    if problem.format.eps > GOLDEN_MARGIN * 2.0**-52:
        return _Truth(problem, golden, None, condition)
    fewer, high, low = operator.precise(problem)
    if high.keys() != golden.keys():
        raise GoldenError(
            f"golden of {operator.name} is float64 and cannot judge {problem.format.name}"
        )
    return _Truth(fewer, high, low, condition)


def _one(operator: Operator, cell: Cell, id_: str, shared: _Shared) -> Measurement:
    candidate = resolve_subject(operator, cell.candidate)
    baseline = resolve_subject(operator, cell.baseline)
    for subject, name in ((candidate, cell.candidate), (baseline, cell.baseline)):
        if reason := subject.refuses(shared.problem):
            raise UnsupportedError(f"{name} does not take {reason}")
    if cell.kind == "timing":
        return _timed(cell, id_, shared.problem, (baseline, candidate))
    truth = shared.judged(operator)
    key = str(cell.baseline)
    if key not in shared.baselines:
        plain = _without_recipe_parameters(operator, truth.problem)
        shared.baselines[key] = baseline.run(plain, truth.golden)
    base = shared.baselines[key]
    own = replace(truth.problem, parameters=cell.parameters)
    result = base if cell.candidate == cell.baseline else candidate.run(own, truth.golden)
    return _compared(operator, cell, id_, truth, (base, result))


def _without_recipe_parameters(operator: Operator, problem: Problem) -> Problem:
    """A baseline keeps its own tile, whatever tile the candidate is given."""
    own = {n: p.default for n, p in operator.parameters.items() if p.recipe_only}
    return problem.with_parameters(**own)


def _compared(
    operator: Operator, cell: Cell, id_: str, truth: _Truth, results: tuple[Result, Result]
) -> Measurement:
    base, result = results
    format, dims = truth.problem.format, operator.cluster_dims
    outputs: dict[str, Any] = {}
    floors: dict[str, Any] = {}
    evidence: dict[str, Any] = {}
    for name, x in result.outputs.items():
        golden = truth.golden[name]
        # Only the first output is stored in the problem's format; others are fp32 statistics.
        stored = format if name == operator.outputs[0] else _statistics(format)
        against = base.outputs.get(name)
        rest = None if truth.rest is None else truth.rest[name]
        outputs[name] = measure_deviation(
            golden, x, format=stored, baseline=against, cluster_dims=min(dims, x.ndim),
            golden_rest=rest,
        ).to_record()  # fmt: skip
        lowest = floor(golden, stored, cluster_dims=min(dims, x.ndim)).to_record()
        floors[name] = {metric: lowest[metric] for metric in FLOOR_METRICS if metric in lowest}
        if against is not None:
            evidence[name] = _evidence(round_to(golden, stored), against, x)
    ran = tuple(dict.fromkeys((*base.ran, *result.ran)))
    return Measurement(
        id_, cell, environment_digest(cell), "ok", outputs, floors, evidence, truth.condition,
        result.probes, ran=ran,
    )  # fmt: skip


def _statistics(format: Format) -> Format:
    return format if format.mantissa_bits > 23 else get_format("fp32")


def _evidence(golden: Tensor, baseline: Tensor, x: Tensor) -> dict[str, float]:
    """The share of elements equal to the baseline's, for the candidate and for the null.

    The null is golden rounded once; lift = (match - null) / (1 - null) is the share of
    what the null leaves unexplained that the candidate explains.
    """
    against = baseline.double()
    match = 1.0 - mismatch_rate(against, x.double())
    null = 1.0 - mismatch_rate(against, golden.double())
    lift = (match - null) / (1.0 - null) if null < 1.0 else float("nan")
    return {"match": match, "null": null, "lift": lift}


def _timed(
    cell: Cell, id_: str, problem: Problem, pair: tuple[Any, Any], *, budget: float = 1.0
) -> Measurement:
    """Median seconds of a call of candidate and baseline, taken in turn so that drift is shared."""
    calls = [_call(subject, problem) for subject in pair]
    for call in calls:
        call()
    taken: list[list[float]] = [[], []]
    deadline = time.perf_counter() + budget
    while len(taken[0]) < 5 or (time.perf_counter() < deadline and len(taken[0]) < 200):
        for call, seconds in zip(calls, taken, strict=True):
            started = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - started)
    ratio = statistics.median(b / a for a, b in zip(*taken, strict=True))
    timing = {
        "baseline_s": statistics.median(taken[0]),
        "candidate_s": statistics.median(taken[1]),
        "ratio": ratio,
        "repeats": len(taken[0]),
    }
    return Measurement(id_, cell, environment_digest(cell), "ok", timing=timing)


def _call(subject: KernelSubject | RecipeSubject, problem: Problem) -> Any:
    def call() -> None:
        if isinstance(subject, KernelSubject):
            subject.kernel.run(problem)
        else:
            subject.operator.run(subject.recipe, problem)
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return call
