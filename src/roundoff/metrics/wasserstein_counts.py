"""16-bit numbers, counted by their ordered codes: 65,536 counts from which distances are exact.

Counts of two shards add up to those of both, so a tensor of any size is read once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from roundoff.errors import UsageError
from roundoff.metrics.blocks import flat_chunks
from roundoff.registry import is_installed

__all__ = ["CODES", "COUNTED", "CodeCounts", "area", "counted_distance", "tally", "values_of_codes"]

COUNTED = {torch.bfloat16: 7, torch.float16: 10}
"""The dtypes that are counted, with the number of their mantissa bits."""
CODES = 1 << 16
_CHUNK = 1 << 22


@dataclass(frozen=True, eq=False)
class CodeCounts:
    """How often each number of a 16-bit format occurs.

    `counts[c]` belongs to the c-th number of the format in ascending order: -NaN, -inf, ..., -0,
    0, ..., inf, NaN. `dtype` is torch.bfloat16 or torch.float16.
    """

    dtype: torch.dtype
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, x: Tensor) -> CodeCounts:
        """Count the elements of x, of any shape; raises `UsageError` for another dtype.

        >>> int(CodeCounts.of(torch.tensor([1.0, 1.0, 2.0], dtype=torch.bfloat16)).counts.max())
        2
        """
        if x.dtype not in COUNTED:
            raise UsageError(f"a {x.dtype} has no 16-bit code; give bfloat16 or float16")
        return cls(x.dtype, tally(x.detach().flatten().view(torch.int16)))

    @property
    def size(self) -> int:
        """How many elements were counted."""
        return int(self.counts.sum())

    def merge(self, *others: CodeCounts) -> CodeCounts:
        """Return the counts of all together; raises `UsageError` where the dtypes differ.

        >>> one = CodeCounts.of(torch.ones(3, dtype=torch.float16))
        >>> one.merge(one, one).size
        9
        """
        if any(other.dtype != self.dtype for other in others):
            raise UsageError("counts of two dtypes do not add up; count both in one dtype")
        return CodeCounts(self.dtype, sum((o.counts for o in others), self.counts.copy()))


def counted_distance(a: CodeCounts, b: CodeCounts) -> float:
    """Return the Wasserstein distance W1 of what was counted; special values as `wasserstein`.

    >>> ones = CodeCounts.of(torch.ones(3, dtype=torch.bfloat16))
    >>> counted_distance(ones, CodeCounts.of(torch.zeros(2, dtype=torch.bfloat16)))
    1.0
    """
    a.merge(b)  # one dtype
    n, m = a.size, b.size
    values = values_of_codes(a.dtype)
    if not n or not m or (a.counts + b.counts)[np.isnan(values)].any():
        return math.nan
    used = np.flatnonzero(a.counts + b.counts)
    least = math.lcm(n, m)
    ahead = area(a.counts[used], b.counts[used], least // n, least // m)[:-1]
    with np.errstate(invalid="ignore"):  # no gap counts where nobody is ahead
        steps = np.where(ahead == 0, 0.0, np.abs(ahead).astype(np.float64) * np.diff(values[used]))
    return math.fsum(steps.tolist()) / least


def area(
    a: NDArray[np.int64], b: NDArray[np.int64], of_a: int, of_b: int
) -> NDArray[np.int64] | NDArray[np.object_]:
    """Return how far a is ahead of b at each place, the elements of both weighted.

    In whole numbers, of Python where those of 64 bits could overflow.
    """
    if max(int(a.sum()) * of_a, int(b.sum()) * of_b) < 1 << 62:
        return np.cumsum(a * of_a - b * of_b)
    return np.cumsum(a.astype(object) * of_a - b.astype(object) * of_b)


@cache
def values_of_codes(dtype: torch.dtype) -> NDArray[np.float64]:
    """Return the numbers of a 16-bit dtype in ascending order, NaNs at both ends: [65536]."""
    mantissa = COUNTED[dtype]
    code = np.arange(CODES)
    bits = np.where(code < CODES // 2, CODES - 1 - code, code - CODES // 2)  # without the sign
    exponent, significand = (bits & 0x7FFF) >> mantissa, bits & ((1 << mantissa) - 1)
    top = 0x7FFF >> mantissa
    significand += np.where(exponent > 0, 1 << mantissa, 0)
    # By ldexp, since a conversion from float32 may flush subnormals.
    size = np.ldexp(significand.astype(np.float64), np.maximum(exponent, 1) - top // 2 - mantissa)
    special = np.where(significand == 1 << mantissa, np.inf, np.nan)
    size = np.where(exponent == top, special, size)
    return np.where(code < CODES // 2, -size, size)


def tally(bits: Tensor) -> NDArray[np.int64]:
    """Count flat int16 bits by ordered code: sign and magnitude, in ascending order."""
    if bits.device.type == "cpu" and is_installed("numba"):
        from roundoff.metrics.wasserstein_numba import count_codes  # noqa: PLC0415 - slow to import

        return count_codes(bits.contiguous().numpy().view(np.uint16))
    return tally_by_torch(bits)


def tally_by_torch(bits: Tensor) -> NDArray[np.int64]:
    """The readable twin of the compiled count, on any device."""
    counts = torch.zeros(CODES, dtype=torch.int64, device=bits.device)
    for chunk in flat_chunks(bits, _CHUNK):
        wide = chunk.to(torch.int64)
        code = torch.where(wide < 0, -1 - wide, wide + CODES // 2)
        counts += torch.bincount(code, minlength=CODES)
    return counts.cpu().numpy()
