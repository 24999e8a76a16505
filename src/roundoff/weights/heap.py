"""The pooled Wasserstein distance: the values of many tensors in one heap for each side.

Of 16-bit tensors it falls out of their counts. Others are read again, in a few passes at
most: beyond that it is not taken, and the reason is said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch

from roundoff.metrics.wasserstein import wasserstein
from roundoff.metrics.wasserstein_counts import COUNTED, CodeCounts, counted_distance
from roundoff.metrics.wasserstein_parts import PartCounts, has_kernels, parted_distance, passes
from roundoff.weights.pairs import Pair
from roundoff.weights.tensors import Gathered, Reading, common_dtype

__all__ = ["MOST_PASSES", "Heap"]

MOST_SORTED = 1 << 25
"""Elements of both sides that are sorted in memory."""
MOST_PASSES = 4
"""Over the files, for the heap of all tensors, unless more are asked for."""


@dataclass
class Heap:
    """The pairs of a heap; counts are added as they are taken."""

    pairs: Sequence[Pair]
    codes: tuple[CodeCounts, CodeCounts] | None = None
    parts: PartCounts = field(default_factory=PartCounts)

    @cached_property
    def names(self) -> set[str]:
        """The names of the pairs."""
        return {pair.name for pair in self.pairs}

    @cached_property
    def way(self) -> Literal["codes", "parts", "sort"]:
        """How its distance is taken."""
        dtypes = {common_dtype(pair) for pair in self.pairs}
        if len(dtypes) == 1 and dtypes <= COUNTED.keys():
            return "codes"
        return "parts" if has_kernels() and torch.float64 not in dtypes else "sort"

    def add(self, found: Gathered) -> None:
        """Take in the counts of one of the pairs."""
        if self.way == "parts" and found.parts is not None:
            self.parts.merge(found.parts)
        if self.way == "codes" and found.codes is not None:
            ours = self.codes or found.codes
            if self.codes is not None:
                ours = ours[0].merge(found.codes[0]), ours[1].merge(found.codes[1])
            self.codes = ours

    def distance(self, reading: Reading, *, most_passes: int = MOST_PASSES) -> float | str:
        """Return W1 of the heap, or why it is not taken."""
        size = 2 * sum(pair.a.size for pair in self.pairs)
        if self.codes is not None:
            return counted_distance(*self.codes)
        if not size:
            return float("nan")
        if self.way == "parts":
            needed = len(list(passes(self.parts)))
            if needed > most_passes:
                times = "another pass" if needed == 1 else f"{needed} more passes"
                return f"it takes {times} over the files; ask for it with --pooled"
            return parted_distance(lambda: reading.pairs_in(torch.float32, *self.pairs), self.parts)
        if size > MOST_SORTED:
            return "it takes a sort of all values in memory"
        sides = list(reading.pairs_in(torch.float64, *self.pairs, keep=True))
        a, b = (torch.cat([side[at] for side in sides]) for at in range(2))
        return wasserstein(a, b)
