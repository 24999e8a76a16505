"""One pair of tensors: read block by block, once for all that streams, again for what needs it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from roundoff.metrics.blocks import flat_chunks
from roundoff.metrics.wasserstein import exact_dtype, wasserstein
from roundoff.metrics.wasserstein_counts import COUNTED, CodeCounts, counted_distance
from roundoff.metrics.wasserstein_parts import PartCounts, has_kernels, parted_distance
from roundoff.metrics.weights import WeightDistance, gathered
from roundoff.weights.casts import Cast, CastWatch
from roundoff.weights.checkpoint import Checkpoint, blocks
from roundoff.weights.pairs import Pair

__all__ = [
    "Gathered",
    "Reading",
    "Tell",
    "TensorDiff",
    "bytes_of",
    "common_dtype",
    "compare_tensors",
    "silent",
]

Tell = Callable[[int, int], None]


def silent(done: int, total: int) -> None:
    """Tell nobody."""


_CHUNK = 1 << 20
"""Elements of which updates are held in float64."""


@dataclass(frozen=True, slots=True)
class TensorDiff:
    """What came of one pair: sums (A is golden), W1, a cast, and the updates from a base.

    `wasserstein` is the W1 of the two tensors' values, in their units, NaN for no elements.
    `update` holds A - C as a and B - C as b; None without a base C that has the tensor.
    """

    pair: Pair
    distance: WeightDistance
    wasserstein: float
    cast: Cast | None
    update: WeightDistance | None


@dataclass
class Reading:
    """Two checkpoints, maybe a base of both, and how many bytes were read of how many."""

    a: Checkpoint
    b: Checkpoint
    base: Checkpoint | None = None
    base_names: dict[str, str] = field(default_factory=dict[str, str])
    tell: Tell = silent
    total: int = 0
    done: int = 0

    def blocks(self, pair: Pair) -> Iterator[tuple[Tensor, Tensor, int, int]]:
        """Yield the blocks of a pair, as they are, with start and stop."""
        for start, stop in blocks(pair.a, pair.b):
            a = self.a.read(pair.name_a, start, stop)
            yield a, self.b.read(pair.name_b, start, stop), start, stop
            self.done += (stop - start) * (pair.a.dtype.itemsize + pair.b.dtype.itemsize)
            self.tell(self.done, max(self.total, self.done))

    def pairs_in(
        self, dtype: torch.dtype, *pairs: Pair, keep: bool = False
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the blocks of some pairs in one dtype; to be kept, or used before the next."""
        self.total += sum(bytes_of(pair) for pair in pairs)
        for pair in pairs:
            for a, b, _, _ in self.blocks(pair):
                yield a.to(dtype, copy=keep), b.to(dtype, copy=keep)


def bytes_of(pair: Pair) -> int:
    """The bytes of both tensors."""
    return pair.a.size * (pair.a.dtype.itemsize + pair.b.dtype.itemsize)


def common_dtype(pair: Pair) -> torch.dtype:
    """The dtype in which W1 of a pair is taken, which holds the numbers of both."""
    return exact_dtype(torch.empty(0, dtype=pair.a.dtype), pair.b.dtype).dtype


@dataclass
class Gathered:
    """Counts that were taken on the way, for W1 of this pair and of heaps that it belongs to."""

    codes: tuple[CodeCounts, CodeCounts] | None = None
    parts: PartCounts | None = None

    def add(self, a: Tensor, b: Tensor) -> None:
        """Take in a block of both sides."""
        if self.codes is not None:
            first, second = self.codes
            self.codes = first.merge(CodeCounts.of(a)), second.merge(CodeCounts.of(b))
        if self.parts is not None:
            self.parts.add(a.to(torch.float32), b.to(torch.float32))


def compare_tensors(reading: Reading, pair: Pair, *, parts: bool) -> tuple[TensorDiff, Gathered]:
    """Compare one pair; `parts`: a heap that it belongs to counts by part."""
    dtype = common_dtype(pair)
    counted, narrow = dtype in COUNTED, dtype is torch.float32 and has_kernels()
    one_block = len(list(blocks(pair.a, pair.b))) <= 1
    found = Gathered()
    if counted:
        empty = CodeCounts.of(torch.empty(0, dtype=dtype))
        found.codes = empty, empty
    if parts or (narrow and not one_block):
        found.parts = PartCounts()
    distance, update = WeightDistance(), None
    watch = CastWatch(pair.a.dtype, pair.b.dtype)
    w1 = math.nan
    for a, b, start, stop in reading.blocks(pair):
        distance = distance.merge(gathered(a, b))
        watch.add(a, b)
        found.add(a, b)
        if pair.name in reading.base_names:
            update = _update(reading, pair, (a, b), start, stop).merge(update or WeightDistance())
        if one_block and not counted:
            w1 = wasserstein(a, b)
    if found.codes is not None:
        w1 = counted_distance(*found.codes)
    elif not one_block:
        w1 = _second_pass(reading, pair, dtype, found.parts if narrow else None)
    cast = watch.found(differ=distance.differing > 0) if distance.n else None
    return TensorDiff(pair, distance, w1, cast, update), found


def _second_pass(
    reading: Reading, pair: Pair, dtype: torch.dtype, parts: PartCounts | None
) -> float:
    if parts is not None:
        return parted_distance(lambda: reading.pairs_in(torch.float32, pair), parts)
    # Sorting needs both tensors whole.
    reading.total += bytes_of(pair)
    a = torch.empty(pair.a.size, dtype=dtype)
    b = torch.empty_like(a)
    for x, y, start, stop in reading.blocks(pair):
        a[start:stop], b[start:stop] = x, y
    return wasserstein(a, b)


def _update(
    reading: Reading, pair: Pair, sides: tuple[Tensor, Tensor], start: int, stop: int
) -> WeightDistance:
    """What is known of A - C and B - C in a block."""
    assert reading.base is not None
    c = reading.base.read(reading.base_names[pair.name], start, stop)
    found = WeightDistance()
    for a, b, base in zip(*(flat_chunks(t, _CHUNK) for t in (*sides, c)), strict=True):
        wide = base.to(torch.float64)
        found = found.merge(gathered(a.to(torch.float64) - wide, b.to(torch.float64) - wide))
    return found
