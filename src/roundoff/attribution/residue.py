"""What a recipe leaves unexplained of a kernel on natural inputs: bits, size, and bias."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from roundoff.attribution.witness import same, testify
from roundoff.errors import KernelError, UnsupportedError
from roundoff.formats import Format, round_to
from roundoff.metrics import Deviation, measure_deviation
from roundoff.operators.protocol import Operator, Problem
from roundoff.subjects import Subject

__all__ = ["Residue", "judge", "measure_residue"]

Z = 6.0
"""Standard errors beyond which a gain is no accident."""
LARGER = 1.25
"""A kernel whose rmse is this many times its recipe's has errors that no recipe explains."""


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

    def to_record(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def measure_residue(
    subject: Subject, operator: Operator, recipe: Any, format: Format, seed: int
) -> Residue:
    """Run the kernel and its recipe on natural inputs; raises `KernelError` if it takes none."""
    problem, kernel = _natural(subject, operator, format, seed)
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
        _share(testify(subject, operator, problem), kernel), kernel.numel(),
    )  # fmt: skip


def _natural(
    subject: Subject, operator: Operator, format: Format, seed: int
) -> tuple[Problem, Tensor]:
    """The first natural problem that the kernel takes, and its output there."""
    refused: list[str] = []
    for given in operator.natural():
        problem = operator.draw(operator.settle(given), format, seed)
        try:
            return problem, testify(subject, operator, problem)
        except (KernelError, UnsupportedError) as error:
            refused.append(str(error))
    raise KernelError(f"the kernel takes no natural inputs in {format.name}: {refused[0]}")


def _share(a: Tensor, b: Tensor) -> float:
    return same(a, b).double().mean().item()


def _deviation(operator: Operator, golden: Tensor, x: Tensor, format: Format) -> Deviation:
    return measure_deviation(golden, x, format=format, cluster_dims=operator.cluster_dims)


def judge(residue: Residue, recipe: str) -> str:
    """The verdict in words.

    >>> well = Residue(0.9999, 0.7, 0.9997, 0.999, 1.0, 0.0, 1e-7, 1.0, 10**6)
    >>> judge(well, "fa2")
    'explained by fa2'
    """
    floor = 1.0 - residue.order_floor
    if abs(residue.gain) > Z * residue.gain_se and abs(residue.gain) > 1e-5:
        return (
            f"biased: beside {recipe}, its outputs are stretched by {residue.gain:.2g} "
            f"(standard error {residue.gain_se:.1g})"
        )
    if 1.0 - residue.match <= 3.0 * floor + 1e-4:
        return f"explained by {recipe}"
    if not residue.err_ratio <= LARGER:
        return f"{residue.err_ratio:.2g} times larger than any recipe explains"
    return f"partly explained by {recipe}: {residue.match:.2%} of its bits, and errors of its size"
