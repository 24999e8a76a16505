"""Measure cells: draw, compute golden, baseline and candidate, compare. No files, no processes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from roundoff.bench.identity import cell_id, environment_digest
from roundoff.bench.timing import time_pair
from roundoff.errors import CellError, GoldenError, UnsupportedError
from roundoff.formats import Format, get_format, round_to
from roundoff.metrics import GOLDEN_MARGIN, floor, measure_deviation, mismatch_rate
from roundoff.operators import OPERATORS
from roundoff.operators.protocol import Operator, Outputs, Problem
from roundoff.records import Cell, Measurement, SubjectName
from roundoff.subjects import Result, Subject, in_one_line, resolve_subject

__all__ = ["Task", "evidence", "measure", "measure_task", "truth"]

FLOOR_METRICS = ("rmse", "max_abs_err", "mean_abs_err", "rel_l2", "ulp_mean")

_ALONE = threading.Lock()


@dataclass(frozen=True, slots=True)
class Task:
    """Cells that share a problem, with their ids: what is handed to a worker."""

    cells: tuple[tuple[str, Cell], ...]


@dataclass(frozen=True, slots=True)
class Truth:
    """A problem with its golden; `rest` is what rounding golden to float64 left out."""

    problem: Problem
    golden: Outputs
    rest: Outputs | None
    condition: dict[str, float]


def measure_task(task: Task) -> list[dict[str, Any]]:
    """Measure all cells of a task; a cell that fails costs only itself.

    In a pool of threads one task runs at a time: torch's settings, which kernels and recipes
    change while they run, are one set a process.
    """
    with _ALONE:
        before = torch.get_num_threads()
        torch.set_num_threads(task.cells[0][1].threads)
        try:
            return [m.to_record() for m in measure(task.cells)]
        finally:
            torch.set_num_threads(before)


def measure(cells: Sequence[tuple[str, Cell]]) -> Iterator[Measurement]:
    """Measure cells of one problem, drawing and computing golden and baseline once."""
    shared = _Shared(cells[0][1])
    for id_, cell in cells:
        started = time.perf_counter()
        try:
            if cell_id(cell) != id_:
                raise CellError(
                    "the kernel, the inputs or the environment are not what they were when the "
                    "run was planned; start the command again"
                )
            measured = shared.measure(id_, cell)
        except UnsupportedError as error:
            measured = _without_numbers(id_, cell, "skipped", str(error))
        except Exception as error:
            measured = _without_numbers(id_, cell, "failed", in_one_line(error))
        yield replace(measured, elapsed=round(time.perf_counter() - started, 4))


def _without_numbers(
    id_: str, cell: Cell, status: Literal["skipped", "failed"], error: str
) -> Measurement:
    return Measurement(
        id=id_, cell=cell, environment=environment_digest(cell), status=status, error=error
    )


class _Shared:
    """What cells of one problem have in common, each made when the first cell asks for it."""

    def __init__(self, cell: Cell) -> None:
        self.cell, self.operator = cell, OPERATORS[cell.operator]
        self._problem: Problem | None = None
        self._truth: Truth | None = None
        self._baselines: dict[SubjectName, Result] = {}

    def measure(self, id_: str, cell: Cell) -> Measurement:
        """Measure one cell."""
        candidate = resolve_subject(self.operator, cell.candidate)
        baseline = resolve_subject(self.operator, cell.baseline)
        for subject, name in ((candidate, cell.candidate), (baseline, cell.baseline)):
            if reason := subject.refuses(self.problem):
                raise UnsupportedError(f"{name} does not take {reason}")
        done = Measurement(id=id_, cell=cell, environment=environment_digest(cell), status="ok")
        if cell.kind == "timing":
            return replace(done, timing=time_pair(baseline, candidate, self.problem))
        base = self._baseline(baseline, cell.baseline)
        problem = replace(self.truth.problem, parameters=cell.parameters)
        same = cell.candidate == cell.baseline and problem.parameters == self._plain().parameters
        result = base if same else candidate.run(problem, self.truth.golden)
        parts = _compared(self.operator, self.truth, base, result)
        ran = tuple(dict.fromkeys((*base.ran, *result.ran)))
        return replace(done, **parts, condition=self.truth.condition, probes=result.probes, ran=ran)

    @property
    def problem(self) -> Problem:
        """The inputs, drawn once."""
        if self._problem is None:
            cell = self.cell
            drawn = self.operator.draw(cell.parameters, get_format(cell.format), cell.seed)
            self._problem = drawn.to(cell.device)
        return self._problem

    @property
    def truth(self) -> Truth:
        """Golden, computed once."""
        if self._truth is None:
            self._truth = truth(self.operator, self.problem)
        return self._truth

    def _baseline(self, baseline: Subject, name: SubjectName) -> Result:
        if name not in self._baselines:
            self._baselines[name] = baseline.run(self._plain(), self.truth.golden)
        return self._baselines[name]

    def _plain(self) -> Problem:
        """The problem of the baseline, which keeps its own tile whatever the candidate's is."""
        own = {n: p.default for n, p in self.operator.parameters.items() if p.recipe_only}
        return self.truth.problem.with_parameters(**own)


def truth(operator: Operator, problem: Problem) -> Truth:
    """Golden in float64, or finer where the problem's format is too close to float64.

    A golden that is no finer than the outputs that it would judge is a `GoldenError`.
    """
    golden, condition = operator.golden(problem)
    for name, x in golden.items():
        if x.dtype != torch.float64:
            raise GoldenError(f"golden {name!r} of {operator.name} is {x.dtype}; expected float64")
    if problem.format.eps > GOLDEN_MARGIN * torch.finfo(torch.float64).eps:
        return Truth(problem, golden, None, condition)
    fewer, high, low = operator.precise(problem)
    if high.keys() != golden.keys() or low.keys() != golden.keys():
        raise GoldenError(
            f"golden of {operator.name} is float64 and cannot judge {problem.format.name}; "
            "choose a narrower format"
        )
    if not any(bool((x != 0).any()) for x in low.values()):
        raise GoldenError(
            f"the precise golden of {operator.name} is no finer than float64 and cannot judge "
            f"{problem.format.name}: rounding it to float64 left nothing out"
        )
    return Truth(fewer, high, low, condition)


def _compared(operator: Operator, truth: Truth, base: Result, result: Result) -> dict[str, Any]:
    """Metrics of each output: of the candidate, of the floor, and of its match."""
    format, dims = truth.problem.format, operator.cluster_dims
    outputs: dict[str, Any] = {}
    floors: dict[str, Any] = {}
    matches: dict[str, Any] = {}
    for name, x in result.outputs.items():
        golden = truth.golden[name]
        stored = _statistics(format) if name in operator.statistics else format
        against = base.outputs.get(name)
        rest = None if truth.rest is None else truth.rest[name]
        outputs[name] = measure_deviation(
            golden, x, format=stored, baseline=against, cluster_dims=min(dims, x.ndim),
            golden_rest=rest,
        ).to_record()  # fmt: skip
        lowest = floor(golden, stored, cluster_dims=min(dims, x.ndim), golden_rest=rest).to_record()
        floors[name] = {metric: lowest[metric] for metric in FLOOR_METRICS}
        if against is not None:
            matches[name] = evidence(golden, stored, against, x)
    return {"outputs": outputs, "floor": floors, "evidence": matches}


def _statistics(format: Format) -> Format:
    return format if format.mantissa_bits > 23 else get_format("fp32")


def evidence(golden: Tensor, stored: Format, baseline: Tensor, x: Tensor) -> dict[str, float]:
    """The share of elements equal to the baseline's, for the candidate and for the null.

    The null is golden rounded once; lift = (match - null) / (1 - null) is the share of what the
    null leaves unexplained that the candidate explains: 1 for all of it, 0 for none, and
    far below 0 where the null explains nearly all and the candidate does not. It is NaN
    where the null leaves nothing. `r2` is the squared correlation of the two errors against
    golden, element by element; NaN where one of them is the same everywhere.

    >>> import torch
    >>> golden = torch.tensor([1.0, 2.0, 3.25, 4.25], dtype=torch.float64)
    >>> baseline = torch.tensor([1.0, 2.0, 3.0, 4.0])
    >>> candidate = torch.tensor([1.0, 2.0, 3.0, 5.0])
    >>> evidence(golden, get_format("fp32"), baseline, candidate)["lift"]
    0.5
    """
    against, null = baseline.double(), round_to(golden, stored)
    match = 1.0 - mismatch_rate(against, x.double())
    shared = 1.0 - mismatch_rate(against, null)
    lift = (match - shared) / (1.0 - shared) if shared < 1.0 else float("nan")
    r2 = _squared_correlation(x.double() - golden, against - golden)
    return {"match": match, "null": shared, "lift": lift, "r2": r2}


def _squared_correlation(a: Tensor, b: Tensor) -> float:
    seen = a.isfinite() & b.isfinite()
    a, b = a[seen], b[seen]
    if not a.numel():
        return float("nan")
    a, b = a - a.mean(), b - b.mean()
    sizes = (a * a).sum() * (b * b).sum()
    return float((a * b).sum() ** 2 / sizes) if sizes > 0 else float("nan")
