"""The Wasserstein distance of two sets of numbers: how far one heap must be moved to be the other.

Exact, also for samples of unequal size: 16-bit numbers are counted (`wasserstein_counts`), 32-bit
ones parted and counted (`wasserstein_parts`), all others sorted here.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from roundoff.errors import UsageError
from roundoff.metrics.wasserstein_counts import COUNTED, CodeCounts, counted_distance
from roundoff.metrics.wasserstein_parts import has_kernels, parted_distance

__all__ = ["exact_dtype", "sorted_distance", "wasserstein"]

WORTH_PARTING = 1 << 17
"""Below this many elements, a sort is done before 65,536 counts are gone through."""
# What a float32 holds without loss, and what a bfloat16 or a float16 does.
_IN_32 = {torch.int8, torch.uint8, torch.int16, torch.uint16, torch.bool}


def wasserstein(a: Tensor, b: Tensor, *, p: float = 1) -> float:
    """Return the Wasserstein distance W_p between the values of two tensors of any shapes.

    The least mean cost of moving the values of `a` to those of `b`, where moving x to y costs
    `|x - y|^p`; the p-th root of it, in units of the values. For p = 1 it is the area between
    the two distribution functions, and the sizes may differ; for p > 1 they must be equal.

    A NaN on either side gives NaN, and so does an empty side. An infinity that both sides hold in
    the same share costs nothing; any other makes the distance infinite. -0 is 0. Dtypes may differ;
    an int64 beyond 2^53 is rounded. Raises `UsageError` for complex tensors, for p < 1, and for
    p > 1 with unequal sizes.

    Source: Vallender, "Calculation of the Wasserstein distance between probability distributions
    on the line" (1974).

    >>> wasserstein(torch.tensor([0.0, 1.0, 3.0]), torch.tensor([5.0, 6.0, 8.0]))
    5.0
    >>> wasserstein(torch.tensor([0.0, 1.0]), torch.tensor([0.5]))
    0.5
    """
    _check(a, b, p)
    a, b = (exact_dtype(t.detach().flatten(), other.dtype) for t, other in ((a, b), (b, a)))
    if not a.numel() or not b.numel():
        return math.nan
    if p != 1:
        return sorted_distance(a, b, p=p)
    if a.dtype in COUNTED:
        return counted_distance(CodeCounts.of(a), CodeCounts.of(b))
    large = a.numel() + b.numel() >= WORTH_PARTING
    if large and a.dtype is torch.float32 and a.device.type == "cpu" and has_kernels():
        return parted_distance(lambda: [(a, b)])
    return sorted_distance(a, b)


def _check(a: Tensor, b: Tensor, p: float) -> None:
    if a.is_complex() or b.is_complex():
        raise UsageError("complex numbers have no order; compare torch.view_as_real of both")
    if a.device != b.device:
        raise UsageError(f"devices differ: {a.device} and {b.device}; move one to the other")
    if not 1 <= p < math.inf:
        raise UsageError(f"p is {p}; the Wasserstein distance needs a finite p of at least 1")
    if p != 1 and a.numel() != b.numel():
        raise UsageError(
            f"p is {p} and the sizes are {a.numel()} and {b.numel()}; give p=1, or equal sizes"
        )


def exact_dtype(x: Tensor, other: torch.dtype) -> Tensor:
    """Return x in a dtype that holds both its numbers and those of a tensor of dtype `other`.

    >>> exact_dtype(torch.ones(1, dtype=torch.bfloat16), torch.float16).dtype
    torch.float32
    """
    if x.dtype == other and other in (*COUNTED, torch.float32, torch.float64):
        return x
    small = all(d in _IN_32 or (d.is_floating_point and d.itemsize <= 4) for d in (x.dtype, other))
    return x.to(torch.float32 if small else torch.float64)


def sorted_distance(a: Tensor, b: Tensor, *, p: float = 1) -> float:
    """Return `wasserstein` of two flat tensors that are not empty, by sorting: the plain version.

    >>> sorted_distance(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 4.0]))
    1.5
    """
    if bool(a.isnan().any()) or bool(b.isnan().any()):
        return math.nan
    x, y = _sorted(a).to(torch.float64), _sorted(b).to(torch.float64)
    if x.numel() == y.numel():
        cost = (x - y).abs().masked_fill_(x == y, 0.0)
        return cost.mean().item() if p == 1 else cost.pow(p).mean().item() ** (1 / p)
    n, m = x.numel(), y.numel()
    least = math.lcm(n, m)
    if least >= 1 << 63:
        raise UsageError(f"samples of {n} and {m} values cannot be counted; drop one of the larger")
    every = _sorted(torch.cat([x, y]))
    places, gaps = every[:-1], every.diff()
    # Whole numbers: in floating point, nearly equal shares would cancel.
    ahead = torch.searchsorted(x, places, right=True) * (least // n)
    ahead -= torch.searchsorted(y, places, right=True) * (least // m)
    return ((ahead.abs() * gaps)[ahead != 0].sum() / least).item()


def _sorted(x: Tensor) -> Tensor:
    """Return x in order; on a CPU by numpy, which sorts several times faster than torch."""
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64):
        return x.sort().values
    return torch.as_tensor(np.sort(x.numpy()))
