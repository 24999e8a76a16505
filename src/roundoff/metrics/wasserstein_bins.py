"""What one pass over 32-bit numbers holds of a run of parts: few numbers kept, many counted.

A part has a bin a side, for lower halves of codes. Where the bin of a part is too small for its
numbers, it is counted whenever it is full: bins stay in the cache, where counts would not.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["BIN", "CODES", "Bins", "bytes_held"]

CODES = 1 << 16
BIN = 1 << 12
"""Numbers in a bin that is counted when it is full."""
NARROW = 1 << 31
"""From this many numbers a side on, counts have two bytes: what is carried of one stays small."""


def _dtype(numbers: int) -> np.dtype[Any]:
    return np.dtype(np.uint8 if numbers < NARROW else np.uint16)


def bytes_held(held: NDArray[np.int64], numbers: int, limit: int) -> NDArray[np.int64]:
    """Return the bytes that each part takes, of `held` numbers of both sides; `numbers` in all.

    If all together would take more than `limit`, parts that take less as counts are counted.
    """
    kept = 2 * held
    if kept.sum() <= limit:
        return kept
    return np.minimum(kept, 2 * (CODES * _dtype(numbers).itemsize + 2 * BIN))


class Bins:
    """Bins for the parts of a run, with `held[s, p]` numbers of side s in part p.

    `lower` holds all bins, those of counted parts first, each from a multiple of BIN on; `places`
    [2, parts] are where the next number goes. Of kept parts, the bin of a begins at `starts[0, p]`,
    that of b at `starts[1, p]`. `slots` are the places of counted parts in `tables` [2, slots,
    codes], -1 for others. A count that was full is `carried`: its code from the first part on, once
    for every `span` numbers.
    """

    def __init__(self, held: NDArray[np.int64], numbers: int, limit: int) -> None:
        counted = 2 * held.sum(0) > bytes_held(held.sum(0), numbers, limit)
        slots, dtype = int(counted.sum()), _dtype(numbers)
        self.span = 1 << 8 * dtype.itemsize
        self.slots = np.where(counted, np.cumsum(counted) - 1, -1)
        past = 2 * BIN * slots + np.cumsum(np.where(counted, 0, held).T.ravel())
        self.starts = np.empty((2, held.shape[1] + 1), np.int64)
        self.starts[0, 0], self.starts[0, 1:] = 2 * BIN * slots, past[1::2]
        self.starts[1, :-1], self.starts[1, -1] = past[::2], past[-1]
        self.lower = np.empty(int(past[-1]), np.uint16)
        firsts = BIN * (2 * self.slots + np.arange(2)[:, None])
        self.places = np.where(counted, firsts, self.starts[:, :-1])
        self.tables = np.zeros((2, slots, CODES), dtype)
        most = (held * counted).sum(1) // self.span
        self.carried = [np.empty(n, np.uint32) for n in most.tolist()]
        self.carries = np.zeros((2, 1), np.int64)

    def of(self, side: int) -> tuple[Any, ...]:
        """Return what the compiled loops take of a side: bins, counts, what is carried."""
        bins = self.lower, self.places[side], self.slots, BIN
        return bins, self.tables[side], self.carried[side], self.carries[side]

    def sort_carried(self) -> tuple[Any, ...]:
        """Return what the compiled loops take of counted parts, what is carried in order."""
        parts = np.arange(self.slots.size + 1, dtype=np.int64) << 16
        sides = zip(self.carried, self.carries.ravel().tolist(), strict=True)
        self.carried = [np.sort(codes[:n]) for codes, n in sides]
        bounds = np.stack([np.searchsorted(codes, parts) for codes in self.carried])
        return self.slots, self.tables, tuple(self.carried), bounds, np.int64(self.span)

    def codes_in(self, part: int) -> NDArray[np.integer[Any]]:
        """Return the lower halves that occur in a part, maybe repeatedly."""
        slot = self.slots[part]
        if slot < 0:
            return self.lower[self.starts[0, part] : self.starts[0, part + 1]]
        seen = np.asarray(self.tables[:, slot].any(0))
        for codes, n in zip(self.carried, self.carries.ravel().tolist(), strict=True):
            seen[(codes[:n] & (CODES - 1))[codes[:n] >> 16 == part]] = True
        return np.flatnonzero(seen)
