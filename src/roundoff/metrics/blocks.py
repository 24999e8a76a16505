"""How a tensor of any size and layout is walked in blocks, so that float64 copies stay small.

A block is an index into the leading dims, so that no layout needs a copy of the whole. In
row-major order, a block is a run of elements, and blocks follow one another.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor

__all__ = ["Block", "blocks", "flat_chunks"]


class Block(NamedTuple):
    """One block: where it lies, the row-major number of its first element, its clusters."""

    where: tuple[int | slice, ...]
    offset: int
    clusters: slice

    def take(self, x: Tensor) -> Tensor:
        """Return this block of x: [clusters held, elements of each], a view where possible."""
        return x[self.where].reshape(self.clusters.stop - self.clusters.start, -1)


def flat_chunks(x: Tensor, limit: int) -> Iterator[Tensor]:
    """Yield views of at most `limit` elements of a flat tensor, in order."""
    for start in range(0, x.numel(), limit):
        yield x[start : start + limit]


def blocks(shape: tuple[int, ...], limit: int, clusters: int = 1) -> Iterator[Block]:
    """Yield blocks of at most `limit` elements that cover `shape`; none for no elements.

    The elements are numbered in row-major order and cut into `clusters` runs of equal length,
    which must be a product of leading dims. A block holds whole clusters or a part of one.

    >>> [(b.where, b.clusters) for b in blocks((3, 4), 8, clusters=3)]
    [((slice(0, 2, None),), slice(0, 2, None)), ((slice(2, 3, None),), slice(2, 3, None))]
    >>> [(b.where, b.offset) for b in blocks((2, 4), 3)]
    [((0, slice(0, 3, None)), 0), ((0, slice(3, 4, None)), 3), ...]
    """
    n = math.prod(shape)
    if not n:
        return
    if not shape:
        yield Block((), 0, slice(0, 1))
        return
    axis = next(d for d in range(len(shape)) if math.prod(shape[d + 1 :]) <= limit)
    unit = math.prod(shape[axis + 1 :])
    step, offset = limit // unit, 0
    for lead in itertools.product(*map(range, shape[:axis])):
        for first in range(0, shape[axis], step):
            last = min(first + step, shape[axis])
            size = (last - first) * unit
            held = slice(offset * clusters // n, -(-(offset + size) * clusters // n))
            yield Block((*lead, slice(first, last)), offset, held)
            offset += size
