"""32-bit numbers, parted by the upper half of their ordered codes, then counted by the lower half.

Nothing is sorted. The numbers come in blocks that are read again for every pass, so memory
is bounded whatever their number: a pass keeps the lower halves of as many parts as fit.
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
from roundoff.registry import is_installed

__all__ = ["PartCounts", "has_kernels", "parted_distance", "passes"]

PARTS = CODES = 1 << 16
IN_MEMORY = 1 << 27
"""Lower halves, of two bytes, that a pass keeps."""

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
    """Yield runs of parts, first and past the last, with at most `limit` numbers in each.

    A part with more numbers is a run of its own.
    """
    held = counts.counts.sum(0)
    used = np.flatnonzero(held)
    first, last, total = -1, -1, 0
    for part, n in zip(used.tolist(), held[used].tolist(), strict=True):
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
    if they were counted already. At most `limit` lower halves are held at a time.
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
        if not _pass(blocks, counts, run, weights, inner, limit):
            return math.nan
    spacing, border = _gaps()
    with np.errstate(invalid="ignore"):  # no gap counts where nobody is ahead
        across = np.where(ahead == 0, 0.0, np.abs(ahead) * border)
    return float((inner * spacing).sum() + across.sum()) / least


def _pass(
    blocks: Blocks, counts: PartCounts, run: tuple[int, int], weights: tuple[int, int],
    inner: NDArray[np.float64], limit: int,
) -> bool:  # fmt: skip
    """Fill in the areas inside the parts of a run, in steps of a code; False for a NaN."""
    from roundoff.metrics import wasserstein_numba as kernels  # noqa: PLC0415

    held = counts.counts[:, run[0] : run[1]]
    if held.sum() > limit:  # one part
        single = np.zeros((2, CODES), np.int64)
        for a, b in blocks():
            kernels.count_lower(*_bits(a, b), run[0], single)
        inner[run[0]] = _area(single, weights, _before(counts, run[0], weights))
        return not _nan_in(run[0], np.flatnonzero(single.sum(0)))
    starts = np.zeros((2, run[1] - run[0] + 1), np.int64)
    ends = np.cumsum(held.T.ravel()).reshape(-1, 2).T  # by part: those of a, then those of b
    starts[0, 1:], starts[1, 1:] = ends[1], ends[1]
    starts[1, :-1] = ends[0]
    lower, places = np.empty(int(held.sum()), np.uint16), starts[:, :-1].copy()
    for a, b in blocks():
        kernels.keep_lower(*_bits(a, b), run[0], places, lower)
    for part in {MINUS_INF, PLUS_INF} & set(range(*run)):
        at = starts[0, part - run[0]]
        if _nan_in(part, lower[at : starts[0, part - run[0] + 1]]):
            return False
    before = _before(counts, run[0], weights)
    inner[run[0] : run[1]] += kernels.areas(lower, starts, before, weights)
    return True


def _before(counts: PartCounts, part: int, weights: tuple[int, int]) -> int:
    a, b = counts.counts[:, :part].sum(1).tolist()
    return a * weights[0] - b * weights[1]


def _area(single: NDArray[np.int64], weights: tuple[int, int], before: int) -> float:
    ahead = before + np.cumsum(single[0] * weights[0] - single[1] * weights[1])
    return float(np.abs(ahead[:-1]).astype(np.float64).sum())


def _holds_nan(counts: NDArray[np.int64]) -> bool:
    return bool(counts[:, :MINUS_INF].any() or counts[:, PLUS_INF + 1 :].any())


def _nan_in(part: int, lower: NDArray[np.integer]) -> bool:
    infinite = {MINUS_INF: CODES - 1, PLUS_INF: 0}
    return part in infinite and bool((lower != infinite[part]).any())


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
