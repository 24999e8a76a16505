"""What a recipe leaves unexplained of a kernel on natural inputs: bits, size, and bias."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor

from roundoff.attribution.witness import same, testify
from roundoff.errors import KernelError, UnsupportedError
from roundoff.formats import Format, round_to
from roundoff.metrics import Deviation, measure_deviation
from roundoff.operators.protocol import Operator, Problem
from roundoff.subjects import Subject

__all__ = ["Natural", "Residue", "judge", "measure_residue", "natural"]

SURE, SLIGHT = 6.0, 1e-5
"""Standard errors beyond which a gain is no accident, and the gain up to which it is no matter."""
FLOORS, SPARE = 3.0, 1e-4
"""A recipe may miss so many times what its order floor misses of itself, and this share beside."""
OTHER_RESULT = 0.5
"""Above this relative error to golden a kernel computes something else."""
LARGER = 1.25
"""A kernel whose rmse is this many times its recipe's has errors that no recipe explains."""


@dataclass(frozen=True, slots=True)
class Example:
    """Natural inputs, and golden, recipe and kernel at their rows, of which `row_axis` counts."""

    inputs: Mapping[str, Tensor]
    golden: Tensor
    recipe: Tensor
    kernel: Tensor
    row_axis: int

    def worst(self, rows: int) -> Tensor:
        """The numbers of the rows in which the kernel is farthest from the recipe."""
        apart = (self.kernel - self.recipe).abs().nan_to_num(math.inf)
        others = [d for d in range(apart.ndim) if d != self.row_axis % apart.ndim]
        return apart.amax(others).topk(min(rows, apart.shape[self.row_axis])).indices.cpu()


@dataclass(frozen=True, slots=True)
class Natural:
    """A kernel on natural inputs: the problem, golden there, its output, and how far that is."""

    problem: Problem
    golden: Tensor
    kernel: Tensor
    deviation: Deviation

    @property
    def another(self) -> str:
        """Why the kernel's output is no rounded one at all; empty where it may be."""
        return _another(self.deviation.nonfinite_new, self.kernel.numel(), self.deviation.rel_l2)


def _another(nonfinite: int, elements: int, rel_l2: float) -> str:
    if nonfinite:
        return (
            f"broken: {nonfinite} of {elements} elements are NaN or infinite where golden is finite"
        )
    if rel_l2 > OTHER_RESULT:
        return (
            f"another result, not rounding: relative error {rel_l2:.2g}; are the layout, "
            "the scale and the mask right?"
        )
    return ""


@dataclass(frozen=True, slots=True)
class Residue:
    """A kernel beside its recipe and golden, pooled over natural inputs.

    `match` is the share of the kernel's bits that the recipe gives, `null` the share that
    golden rounded once gives, `lift` = (match - null) / (1 - null), `order_floor` what the
    recipe keeps of its own bits when its sums run backwards. `err_ratio` is the kernel's rmse
    over the recipe's (NaN where both are exact); `gain` = <d, g> / <g, g> of their difference d,
    with its standard error; `repeats` the share of bits that a second call gives again; `rel_l2`
    the kernel's own relative error, and `nonfinite` its elements that are NaN or infinite where
    golden is not.
    """

    match: float
    null: float
    lift: float
    order_floor: float
    err_ratio: float
    gain: float
    gain_se: float
    repeats: float
    rel_l2: float
    nonfinite: int
    elements: int
    example: Example = field(repr=False, compare=False)

    @property
    def another(self) -> str:
        """As `Natural.another`."""
        return _another(self.nonfinite, self.elements, self.rel_l2)

    def to_record(self) -> dict[str, Any]:
        """Plain data for JSON."""
        names = [f.name for f in fields(self) if f.name != "example"]
        return {name: getattr(self, name) for name in names}


def measure_residue(subject: Subject, recipe: Any, seen: Natural) -> Residue:
    """Run the recipe on the natural inputs that the kernel was seen on, and the kernel again."""
    problem, golden, kernel, theirs = seen.problem, seen.golden, seen.kernel, seen.deviation
    operator, format = subject.operator, problem.format
    output = operator.outputs[0]

    def emulated(other: Any) -> Tensor:
        return operator.run(other, problem)[0][output].double()

    ours = emulated(recipe)
    match, null = (_share(x, kernel) for x in (ours, round_to(golden, format).double()))
    mine = _deviation(operator, golden, ours, format)
    apart = _deviation(operator, golden, golden + (kernel - ours), format)
    return Residue(
        match, null, (match - null) / (1.0 - null) if null < 1.0 else math.nan,
        _share(emulated(operator.reordered(recipe)), ours),
        _ratio(theirs.rmse, mine.rmse), apart.gain, apart.gain_se,
        _share(testify(subject, problem), kernel),
        theirs.rel_l2, theirs.nonfinite_new, kernel.numel(),
        Example(problem.inputs, golden, ours, kernel, operator.row_axes[output]),
    )  # fmt: skip


def natural(subject: Subject, format: Format, seed: int, *, device: str = "cpu") -> Natural:
    """The kernel on the first natural inputs that it takes; `KernelError` if it takes none."""
    operator = subject.operator
    refused: list[str] = []
    for given in operator.natural():
        problem = operator.draw(operator.settle(given), format, seed).to(device)
        try:
            kernel = testify(subject, problem)
        except (KernelError, UnsupportedError) as error:
            refused.append(str(error))
        else:
            golden = operator.golden(problem)[0][operator.outputs[0]]
            return Natural(problem, golden, kernel, _deviation(operator, golden, kernel, format))
    raise KernelError(f"the kernel takes no natural inputs in {format.name}: {refused[0]}")


def _ratio(a: float, b: float) -> float:
    return a / b if b else math.inf if a else math.nan


def _share(a: Tensor, b: Tensor) -> float:
    return same(a, b).double().mean().item()


def _deviation(operator: Operator, golden: Tensor, x: Tensor, format: Format) -> Deviation:
    return measure_deviation(golden, x, format=format, cluster_dims=operator.cluster_dims)


def judge(residue: Residue, recipe: str) -> str:
    """The verdict in words.

    >>> shares = {"match": 0.9999, "null": 0.7, "lift": 0.9997, "order_floor": 0.999}
    >>> rest = {"repeats": 1.0, "rel_l2": 0.003, "nonfinite": 0, "elements": 10**6, "example": None}
    >>> judge(Residue(**shares, err_ratio=1.0, gain=0.0, gain_se=1e-7, **rest), "fa2")
    'explained by fa2'
    >>> judge(Residue(**shares, err_ratio=2.0, gain=-3e-3, gain_se=1e-5, **rest), "fa2")
    'biased: beside fa2, its outputs are shrunk by 0.003 (standard error 1e-05)'
    """
    if residue.another:
        return residue.another
    if abs(residue.gain) > max(SURE * residue.gain_se, SLIGHT):
        return (
            f"biased: beside {recipe}, its outputs are "
            f"{'stretched' if residue.gain > 0 else 'shrunk'} by {abs(residue.gain):.2g} "
            f"(standard error {residue.gain_se:.1g})"
        )
    if 1.0 - residue.match <= FLOORS * (1.0 - residue.order_floor) + SPARE:
        return f"explained by {recipe}"
    if residue.err_ratio == math.inf:
        return f"not explained: it rounds where {recipe} is exact"
    if residue.err_ratio > LARGER:
        return f"{residue.err_ratio:.2g} times larger than any recipe explains"
    return f"partly explained by {recipe}: {residue.match:.2%} of its bits, and errors of its size"
