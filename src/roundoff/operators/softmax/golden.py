"""Golden softmax: float64, and far beyond for float64 candidates."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from roundoff.operators.precise import as_numbers, as_pair
from roundoff.registry import require

__all__ = ["golden", "precise"]

Pair = tuple[Tensor, Tensor]


def golden(x: Tensor) -> tuple[Pair, dict[str, float]]:
    """y and log-sum-exp of the rows of `x` in float64, and the condition of the problem.

    The error of y is at most float64's epsilon times the row's largest distance from its
    maximum, plus a few epsilons, each relative. A row of -inf alone gives 0 and -inf.

    The condition: `logit_max` (largest size of a finite x) and `logit_range` (largest spread
    of the finite part of a row).
    """
    with torch.no_grad():
        x = x.double()
        m = _largest(x)
        p = (x - m.masked_fill(m == -math.inf, 0.0)).exp()
        total = p.sum(-1, keepdim=True)
        y = (p / total).masked_fill(total == 0, 0.0)
        lse = (m + total.log()).masked_fill(total == 0, -math.inf).squeeze(-1)
    return (y, lse), _condition(x)


def _largest(x: Tensor) -> Tensor:
    if not x.shape[-1]:
        return x.new_full((len(x), 1), -math.inf)
    return x.amax(-1, keepdim=True)


def _condition(x: Tensor) -> dict[str, float]:
    if not x.isfinite().any():
        return {"logit_max": 0.0, "logit_range": 0.0}
    high = torch.where(x.isfinite(), x, -math.inf).amax(-1)
    low = torch.where(x.isfinite(), x, math.inf).amin(-1)
    spread = (high - low)[high >= low]
    size = torch.maximum(high.abs(), low.abs())[high >= low]
    return {"logit_max": size.max().item(), "logit_range": spread.max().item()}


def precise(x: Tensor, *, digits: int = 50) -> tuple[Pair, Pair]:
    """y and log-sum-exp to `digits` digits with mpmath: as float64, and what that left out."""
    mpmath: Any = require("mpmath", extra="analysis", purpose="golden beyond float64")
    with mpmath.workdps(digits):
        rows = [_precise_row(mpmath, row) for row in as_numbers(x)]
        high, low = as_pair(mpmath, rows, x.device)
    return (high[:, :-1], high[:, -1]), (low[:, :-1], low[:, -1])


def _precise_row(mp: Any, row: list[float]) -> list[Any]:
    """The row's y and, last, its log-sum-exp."""
    values = [mp.mpf(value) for value in row]
    seen = [value for value in values if value != -mp.inf]
    if not seen:
        return [mp.mpf(0)] * len(row) + [-mp.inf]
    m = max(seen)
    p = [mp.mpf(0) if value == -mp.inf else mp.exp(value - m) for value in values]
    total = mp.fsum(p)
    return [value / total for value in p] + [m + mp.log(total)]
