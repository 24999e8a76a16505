"""32-bit numbers, parted by the upper half of their ordered codes, then counted by the lower half.

Nothing is sorted. The numbers come in blocks that are read again for every pass, so memory
is bounded whatever their number: a pass holds as many parts as fit (`wasserstein_bins`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from roundoff.errors import UsageError
from roundoff.metrics.wasserstein_bins import CODES, Bins, bytes_held
from roundoff.registry import is_installed

__all__ = ["PartCounts", "has_kernels", "parted_distance", "passes"]

PARTS = 1 << 16
IN_MEMORY = 3 << 27
"""Bytes that a pass holds."""

# The parts of the ordered code of a float32: below are NaNs, then -inf (whose lower half is all
# ones), the finite numbers, inf (lower half 0), NaNs.
MINUS_INF, FIRST, LAST, PLUS_INF = 0x007F, 0x0080, 0xFF7F, 0xFF80

Blocks = Callable[[], Iterable[tuple[Tensor, Tensor]]]


def has_kernels() -> bool:
    """Whether the loops can be compiled here; without Numba, sort."""
    return is_installed("numba")


@dataclass(frozen=True, eq=False)
class PartCounts:
    """How many numbers of both sides lie in each part: [2, 65536]."""

    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros((2, PARTS), np.int64))

    def add(self, a: Tensor, b: Tensor) -> None:
        """Take in a block of each side: flat float32 on the CPU, of any lengths."""
        from roundoff.metrics.wasserstein_numba import count_parts  # noqa: PLC0415

        count_parts(*_bits(a, b), self.counts)

    def merge(self, other: PartCounts) -> None:
        """Take in the counts of other blocks."""
        self.counts[...] += other.counts

    @property
    def sizes(self) -> tuple[int, int]:
        """How many numbers each side has."""
        a, b = self.counts.sum(1).tolist()
        return a, b


def passes(counts: PartCounts, limit: int = IN_MEMORY) -> Iterator[tuple[int, int]]:
    """Yield runs of parts, first and past the last, that take at most `limit` bytes each.

    A part that takes more is a run of its own.
    """
    held = counts.counts.sum(0)
    taken = bytes_held(held, max(counts.sizes), limit)
    used = np.flatnonzero(held)
    first, last, total = -1, -1, 0
    for part, n in zip(used.tolist(), taken[used].tolist(), strict=True):
        if first >= 0 and total + n > limit:
            yield first, last + 1
            first = -1
        if first < 0:
            first, total = part, 0
        last, total = part, total + n
    if first >= 0:
        yield first, last + 1


def parted_distance(
    blocks: Blocks, counts: PartCounts | None = None, *, limit: int = IN_MEMORY
) -> float:
    """Return the Wasserstein distance W1 of float32 numbers on the CPU; NaN, inf as `wasserstein`.

    `blocks()` gives the flat blocks of both sides, again and again the same; `counts` are theirs,
    if they were counted already. About `limit` bytes are held at a time.
    """
    if counts is None:
        counts = PartCounts()
        for a, b in blocks():
            counts.add(a, b)
    n, m = counts.sizes
    if not n or not m or _holds_nan(counts.counts):
        return math.nan
    least = math.lcm(n, m)
    if least >= 1 << 58:
        raise UsageError(f"samples of {n} and {m} values cannot be counted; drop one of the larger")
    weights = least // n, least // m
    ahead = np.cumsum(counts.counts[0] * weights[0] - counts.counts[1] * weights[1])
    inner = np.abs(ahead) * float(CODES - 1)
    inner[counts.counts.sum(0) > 0] = 0
    for run in passes(counts, limit):
        found = _pass(blocks, counts, run, weights, limit)
        if found is None:
            return math.nan
        inner[slice(*run)] += found
    spacing, border = _gaps()
    with np.errstate(invalid="ignore"):  # no gap counts where nobody is ahead
        across = np.where(ahead == 0, 0.0, np.abs(ahead) * border)
    return float((inner * spacing).sum() + across.sum()) / least


def _pass(
    blocks: Blocks, counts: PartCounts, run: tuple[int, int], weights: tuple[int, int], limit: int
) -> NDArray[np.float64] | None:
    """Return the areas inside the parts of a run, in steps of a code; None for a NaN."""
    from roundoff.metrics import wasserstein_numba as kernels  # noqa: PLC0415

    held, numbers = counts.counts[:, slice(*run)], max(counts.sizes)
    bins = Bins(held, numbers, limit)
    for a, b in blocks():
        kernels.sift(*_bits(a, b), run[0], bins)
    kernels.empty(bins)
    infinite = {MINUS_INF: CODES - 1, PLUS_INF: 0}
    for part in infinite.keys() & set(range(*run)):
        if (bins.codes_in(part - run[0]) != infinite[part]).any():
            return None
    a, b = counts.counts[:, : run[0]].sum(1).tolist()
    before = a * weights[0] - b * weights[1]
    narrow = weights == (1, 1) and numbers < 1 << 31
    return kernels.areas(bins, held, before, weights, narrow=narrow)


def _holds_nan(counts: NDArray[np.int64]) -> bool:
    return bool(counts[:, :MINUS_INF].any() or counts[:, PLUS_INF + 1 :].any())


@cache
def _gaps() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The step between codes inside each part, and from its last code to the next part's first."""
    part = np.arange(PARTS)
    bits = np.where(part < PARTS // 2, PARTS - 1 - part, part - PARTS // 2)
    exponent = np.maximum((bits & 0x7FFF) >> 7, 1)
    spacing = np.ldexp(1.0, exponent - 150)
    # Towards zero, a number that is a power of two has the step of the part below it.
    border = np.where(part < PARTS // 2, np.roll(spacing, -1), spacing)
    border[PARTS // 2 - 1] = 0.0  # from -0 to 0
    spacing[:FIRST] = spacing[LAST + 1 :] = border[:MINUS_INF] = border[PLUS_INF:] = 0.0
    border[MINUS_INF] = border[LAST] = math.inf
    return spacing, border


def _bits(a: Tensor, b: Tensor) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    x, y = (t.detach().contiguous().numpy().view(np.uint32) for t in (a, b))
    return x, y
