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

__all__ = ["Residue", "judge", "measure_residue"]

SURE, SLIGHT = 6.0, 1e-5
"""Standard errors beyond which a gain is no accident, and the gain up to which it is no matter."""
FLOORS, SPARE = 3.0, 1e-4
"""A recipe may miss so many times what its order floor misses of itself, and this share beside."""
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
class Residue:
    """A kernel beside its recipe and golden, pooled over natural inputs.

    `match` is the share of the kernel's bits that the recipe gives, `null` the share that
    golden rounded once gives, `lift` = (match - null) / (1 - null), `order_floor` what the
    recipe keeps of its own bits when its sums run backwards. `err_ratio` is the kernel's rmse
    over the recipe's; `gain` = <d, g> / <g, g> of their difference d, with its standard error;
    `repeats` the share of bits that a second call gives again.
    """

    match: float
    null: float
    lift: float
    order_floor: float
    err_ratio: float
    gain: float
    gain_se: float
    repeats: float
    elements: int
    example: Example = field(repr=False, compare=False)

    def to_record(self) -> dict[str, Any]:
        """Plain data for JSON."""
        names = [f.name for f in fields(self) if f.name != "example"]
        return {name: getattr(self, name) for name in names}


def measure_residue(
    subject: Subject, recipe: Any, format: Format, seed: int, *, device: str = "cpu"
) -> Residue:
    """Run the kernel and its recipe on natural inputs; raises `KernelError` if it takes none."""
    problem, kernel = _natural(subject, format, seed, device)
    operator = subject.operator
    output = operator.outputs[0]
    golden = operator.golden(problem)[0][output]

    def emulated(other: Any) -> Tensor:
        return operator.run(other, problem)[0][output].double()

    ours = emulated(recipe)
    match, null = (_share(x, kernel) for x in (ours, round_to(golden, format).double()))
    theirs, mine = (_deviation(operator, golden, x, format) for x in (kernel, ours))
    apart = _deviation(operator, golden, golden + (kernel - ours), format)
    return Residue(
        match, null, (match - null) / (1.0 - null) if null < 1.0 else math.nan,
        _share(emulated(operator.reordered(recipe)), ours),
        theirs.rmse / mine.rmse if mine.rmse else math.nan, apart.gain, apart.gain_se,
        _share(testify(subject, problem), kernel), kernel.numel(),
        Example(problem.inputs, golden, ours, kernel, operator.row_axes[output]),
    )  # fmt: skip


def _natural(subject: Subject, format: Format, seed: int, device: str) -> tuple[Problem, Tensor]:
    """The first natural problem that the kernel takes, and its output there."""
    operator = subject.operator
    refused: list[str] = []
    for given in operator.natural():
        problem = operator.draw(operator.settle(given), format, seed).to(device)
        try:
            return problem, testify(subject, problem)
        except (KernelError, UnsupportedError) as error:
            refused.append(str(error))
    raise KernelError(f"the kernel takes no natural inputs in {format.name}: {refused[0]}")


def _share(a: Tensor, b: Tensor) -> float:
    return same(a, b).double().mean().item()


def _deviation(operator: Operator, golden: Tensor, x: Tensor, format: Format) -> Deviation:
    return measure_deviation(golden, x, format=format, cluster_dims=operator.cluster_dims)


def judge(residue: Residue, recipe: str) -> str:
    """The verdict in words.

    >>> shares = {"match": 0.9999, "null": 0.7, "lift": 0.9997, "order_floor": 0.999}
    >>> rest = {"repeats": 1.0, "elements": 10**6, "example": None}
    >>> judge(Residue(**shares, err_ratio=1.0, gain=0.0, gain_se=1e-7, **rest), "fa2")
    'explained by fa2'
    >>> judge(Residue(**shares, err_ratio=2.0, gain=-3e-3, gain_se=1e-5, **rest), "fa2")
    'biased: beside fa2, its outputs are stretched by -0.003 (standard error 1e-05)'
    """
    if abs(residue.gain) > max(SURE * residue.gain_se, SLIGHT):
        return (
            f"biased: beside {recipe}, its outputs are stretched by {residue.gain:.2g} "
            f"(standard error {residue.gain_se:.1g})"
        )
    if 1.0 - residue.match <= FLOORS * (1.0 - residue.order_floor) + SPARE:
        return f"explained by {recipe}"
    if not residue.err_ratio <= LARGER:
        return f"{residue.err_ratio:.2g} times larger than any recipe explains"
    return f"partly explained by {recipe}: {residue.match:.2%} of its bits, and errors of its size"
