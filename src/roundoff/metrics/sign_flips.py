"""Whether errors add up over time, against the null that flips the sign of whole blocks.

Flipping single steps would take slow drift for persistence; a block of consecutive steps keeps
its own drift whatever its sign.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
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

    With A the matrix without its diagonal, the sum over pairs of blocks is e'Ae for random signs
    e. Its tail is taken as that of z'Az for normal z: mean, variance and third cumulant are the
    same, and the fourth is no smaller. With A's eigenvalues that is a sum of scaled chi-squares,
    whose tail the saddlepoint formula of Lugannani and Rice (1980) gives. 1 for fewer than two
    blocks, where all is 0, and where the sum is hardly above its mean. Never below 2^(1-blocks),
    the share of the two sign patterns that leave the sum as it is.

    >>> flip_tail(torch.ones(12, 12)) < 1e-3 < flip_tail(torch.eye(12))
    True
    """
    off = gram - torch.diag(gram.diag())
    deviation = math.sqrt(2 * off.square().sum().item())
    if not deviation > 0 or off.sum().item() < deviation / 10:
        return 1.0
    scales = np.linalg.eigvalsh((off / deviation).double().numpy())
    return max(_saddlepoint_tail(scales, off.sum().item() / deviation), 2.0 ** (1 - len(gram)))


def _saddlepoint_tail(scales: Any, x: float) -> float:
    """P(sum_i scales_i (z_i^2 - 1) > x > 0) for independent normal z, with variance 1."""
    low, high = 0.0, 0.5 / float(scales.max())
    for _ in range(60):  # t, at which the cumulant function K has the slope x
        t = (low + high) / 2
        slope = float((2 * t * scales**2 / (1 - 2 * t * scales)).sum())
        low, high = (t, high) if slope < x else (low, t)
    left = 1 - 2 * low * scales
    k = -float((np.log(left) / 2 + low * scales).sum())
    w = math.sqrt(2 * (low * x - k))
    u = low * math.sqrt(2 * float(((scales / left) ** 2).sum()))
    density = math.exp(-w * w / 2) / math.sqrt(2 * math.pi)
    return math.erfc(w / math.sqrt(2)) / 2 + density * (1 / u - 1 / w)


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
