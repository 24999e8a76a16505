"""Whether errors add up over time, against the null that flips the sign of whole blocks.

Flipping single steps would take slow drift for persistence; a block of consecutive steps keeps
its own drift whatever its sign.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

__all__ = ["flip_tail", "holm", "persistence"]


def persistence(gram: Tensor, xx: float) -> float:
    """||sum x|| / sqrt(sum ||x||^2): 1 for errors that cancel like noise, sqrt(n) for equal ones.

    `gram` [blocks, blocks] holds the inner products of the blocks' sums, `xx` is the sum of
    ||x||^2 over all n samples. NaN where every x is 0.

    >>> persistence(torch.full((4, 4), 1.0), xx=4.0)
    2.0
    """
    return math.sqrt(max(gram.sum().item(), 0.0) / xx) if xx else math.nan


def flip_tail(gram: Tensor) -> float:
    """P(||sum +-s||^2 >= ||sum s||^2) over independent signs of the blocks' sums s.

    The sum over pairs of blocks, sum_{b != c} +-gram_bc, has mean 0, variance 2 sum gram_bc^2 and
    third cumulant 8 tr(A^3), with A the matrix without its diagonal; the tail is that of the
    gamma distribution with these three (Pearson's type III). 1 for fewer than two blocks
    and where all is 0. Never below 2^(1-blocks), the share of the two sign patterns that
    leave the sum as it is.

    >>> flip_tail(torch.ones(12, 12)) < 1e-3 < flip_tail(torch.eye(12))
    True
    """
    off = gram - torch.diag(gram.diag())
    variance = 2 * off.square().sum().item()
    if not variance > 0:
        return 1.0
    z = off.sum().item() / math.sqrt(variance)
    skew = 8 * torch.trace(off @ off @ off).item() / variance**1.5
    return max(_pearson_tail(z, skew), 2.0 ** (1 - len(gram)))


def _pearson_tail(z: float, skew: float) -> float:
    """P(Z > z) for a standardised gamma variable; the normal's where the skew is not positive.

    A negative skew makes the upper tail lighter than the normal's, so nothing is claimed too early.
    """
    if skew < 1e-3:
        return math.erfc(z / math.sqrt(2)) / 2
    shape = torch.tensor(4 / skew**2, dtype=torch.float64)
    place = (shape + z * shape.sqrt()).clamp(min=0)
    special: Any = torch.special
    return float(special.gammaincc(shape, place))


def holm(tails: list[float]) -> list[float]:
    """Tails adjusted for their number by Holm's step-down method (1979); NaN counts as 1.

    Comparing them with alpha, the chance of a single false alarm among all is at most alpha.

    >>> holm([0.01, 0.5, 0.02])
    [0.03, 0.5, 0.04]
    """
    known = [1.0 if math.isnan(p) else p for p in tails]
    adjusted, floor = list(known), 0.0
    for rank, i in enumerate(sorted(range(len(known)), key=known.__getitem__)):
        floor = max(floor, min(1.0, (len(known) - rank) * known[i]))
        adjusted[i] = floor
    return adjusted
