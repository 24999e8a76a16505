"""The compiled loops of counting: histograms, lower halves by part, areas between two sides.

A float32 is taken as its ordered code: the sign bit flipped, or all bits where it is set.
"""
# Types in here are Numba's, which has no stubs.
# pyright: reportUntypedFunctionDecorator=false, reportMissingParameterType=false
# pyright: reportUnknownArgumentType=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownParameterType=false

from __future__ import annotations

from functools import partial

import numba
import numpy as np
from numpy.typing import NDArray

from roundoff.formats._compiled import compiled
from roundoff.metrics.at_once import at_once, parts_for_threads
from roundoff.metrics.instructions import LANES, ROWS, area, lowest
from roundoff.metrics.wasserstein_bins import CODES, Bins

__all__ = ["areas", "count_codes", "count_parts", "empty", "sift"]

WORDS = CODES // 64
DENSE = 1 << 12
"""From this many numbers on, all codes of a part are gone through, not those that occur."""
_U32, _U64, _I64 = np.uint32, np.uint64, np.int64
_16, _12, _6, _LOW, _SIGN = _U32(16), _I64(12), _I64(6), _U32(0xFFFF), _U32(0x80000000)


@numba.njit(nogil=True)
def _code(bits):
    """The ordered code of a float32."""
    return _U32(bits ^ _U32(_U32(np.int32(bits) >> np.int32(31)) | _SIGN))


@compiled
def _count_codes(bits, counts):
    """Count in two tables, since the next number is often the same one."""
    for i in range(0, bits.size - 1, 2):
        counts[0, bits[i]] += _I64(1)
        counts[1, bits[i + 1]] += _I64(1)
    if bits.size % 2:
        counts[0, bits[bits.size - 1]] += _I64(1)


@compiled
def _count_parts(x, counts):
    for i in range(x.size):
        counts[_code(x[i]) >> _16] += _I64(1)


@numba.njit(nogil=True)
def _tally(numbers, upper, counts, carried, carries):
    """Count the numbers of a bin; a count that begins at 0 again is carried."""
    for i in range(numbers.size):
        code = numbers[i]
        counts[code] += 1
        if counts[code] == 0:
            carried[carries[0]] = upper | _U32(code)
            carries[0] += _I64(1)


@compiled
def _sift(x, first, bins, tables, carried, carries):
    """Write lower halves to the bins of their parts; a bin that is full is counted, and empty."""
    lower, places, slots, size = bins
    parts = _U32(places.size)
    for i in range(x.size):
        code = _code(x[i])
        part = _U32(_U32(code >> _16) - first)
        if part < parts:
            at = places[part]
            lower[at] = np.uint16(code & _LOW)
            at += _I64(1)
            if at & (size - _I64(1)) == 0 and slots[part] >= 0:
                at -= size
                upper = _U32(part << _16)
                _tally(lower[at : at + size], upper, tables[slots[part]], carried, carries)
            places[part] = at


@compiled
def _empty(bins, tables, carried, carries):
    """Count what is left in the bins."""
    lower, places, slots, size = bins
    for part in range(places.size):
        if slots[part] >= 0:
            at = places[part]
            some = lower[at - (at & (size - _I64(1))) : at]
            _tally(some, _U32(_U32(part) << _16), tables[slots[part]], carried, carries)


@numba.njit(nogil=True)
def _mark(numbers, weight, net, seen, words):
    """Add the weight of each number to its code, and mark the code, and its word of marks."""
    for i in range(numbers.size):
        code = _I64(numbers[i])
        word = code >> _6
        net[code] += weight
        seen[word] |= _I64(1) << (code & _I64(63))
        words[word >> _6] |= _I64(1) << (word & _I64(63))


@numba.njit(nogil=True)
def _marked_area(before, net, seen, words):
    """The area over the marked codes; clears them."""
    ahead, previous, total = before, _I64(0), 0.0
    for row in range(words.size):
        marked = words[row]
        words[row] = _I64(0)
        while marked != _I64(0):
            at = _I64(row) * _I64(64) + lowest(marked)
            marked = marked & (marked - _I64(1))
            word = seen[at]
            seen[at] = _I64(0)
            while word != _I64(0):
                code = at * _I64(64) + lowest(word)
                total += np.float64(abs(ahead)) * np.float64(code - previous)
                ahead += net[code]
                net[code] = 0
                previous = code
                word = word & (word - _I64(1))
    return total + np.float64(abs(ahead)) * np.float64(_I64(CODES - 1) - previous)


@numba.njit(nogil=True)
def _add(numbers, weight, net):
    """Add the weight of each number to its code, where `area` looks for it."""
    for i in range(numbers.size):
        code = _I64(numbers[i])
        net[(code & _I64(ROWS - 1)) * _I64(LANES) + (code >> _12)] += weight


@numba.njit(nogil=True)
def _add_counted(counts, carried, weight, span, net):
    """Add the weight of each number of a counted part, likewise."""
    for code in range(CODES):
        net[(code & (ROWS - 1)) * LANES + (code >> 12)] += weight * _I64(counts[code])
    for i in range(carried.size):
        code = _I64(carried[i] & _LOW)
        net[(code & _I64(ROWS - 1)) * _I64(LANES) + (code >> _12)] += weight * span


@compiled
def _areas(kept, counted, run, weights, scratch, result):
    (lower, starts, held), (slots, tables, carried, bounds, span) = kept, counted
    (first, last, ahead), (of_a, of_b), (net, seen, words) = run, weights, scratch
    for part in range(first, last):
        start, middle, end = starts[0, part], starts[1, part], starts[0, part + 1]
        a, b, slot = lower[start:middle], lower[middle:end], slots[part]
        after = ahead + held[0, part] * of_a - held[1, part] * of_b
        if slot >= 0 or end - start >= DENSE:
            if slot >= 0:
                p, q = bounds[0, part : part + 2], bounds[1, part : part + 2]
                _add_counted(tables[0, slot], carried[0][p[0] : p[1]], of_a, span, net)
                _add_counted(tables[1, slot], carried[1][q[0] : q[1]], -of_b, span, net)
            else:
                _add(a, of_a, net)
                _add(b, -of_b, net)
            # The step from the last code leads out of the part.
            result[part] = area(net, ahead) - np.float64(abs(after))
        elif end > start:
            _mark(a, of_a, net, seen, words)
            _mark(b, -of_b, net, seen, words)
            result[part] = _marked_area(ahead, net, seen, words)
        ahead = after


def count_codes(bits: NDArray[np.uint16]) -> NDArray[np.int64]:
    """Count 16-bit floats by their ordered codes."""
    cuts = list(parts_for_threads(bits.size))
    counts = np.zeros((len(cuts), 2, CODES), np.int64)
    jobs = [partial(_count_codes, bits[cut], counts[t]) for t, cut in enumerate(cuts)]
    at_once(jobs, bits.size)
    total = counts.sum((0, 1))
    return np.concatenate([total[CODES // 2 :][::-1], total[: CODES // 2]])


def count_parts(a: NDArray[np.uint32], b: NDArray[np.uint32], counts: NDArray[np.int64]) -> None:
    """Add to the counts of both sides by the upper halves of codes."""
    at_once([partial(_count_parts, a, counts[0]), partial(_count_parts, b, counts[1])], a.size)


def sift(a: NDArray[np.uint32], b: NDArray[np.uint32], first: int, bins: Bins) -> None:
    """Write the lower halves of codes, from the part `first` on, to their bins."""
    jobs = [partial(_sift, x, _U32(first), *bins.of(side)) for side, x in enumerate((a, b))]
    at_once(jobs, a.size)


def empty(bins: Bins) -> None:
    """Count what is left in the bins of the counted parts."""
    at_once([partial(_empty, *bins.of(side)) for side in range(2)], bins.lower.size)


def areas(
    bins: Bins, held: NDArray[np.int64], before: int, weights: tuple[int, int], *, narrow: bool
) -> NDArray[np.float64]:
    """Return the area between the two sides inside each part, in steps of a code.

    Side s has held[s, p] numbers in part p; `before` is how far a is ahead at the first, and
    `narrow` says that 32 bits can hold this anywhere.
    """
    result = np.zeros(held.shape[1])
    work = np.concatenate([[0], np.cumsum(np.where(bins.slots < 0, held.sum(0), CODES))])
    of_a, of_b = _I64(weights[0]), _I64(weights[1])
    kept, counted = (bins.lower, bins.starts, held), bins.sort_carried()
    jobs: list[partial[None]] = []
    for cut in parts_for_threads(int(work[-1])):
        first, last = np.searchsorted(work, (cut.start, cut.stop)).tolist()
        a, b = held[:, :first].sum(1).tolist()
        marks = np.zeros(WORDS, np.int64), np.zeros(WORDS // 64, np.int64)
        scratch = np.zeros(CODES, np.int32 if narrow else np.int64), *marks
        run = first, last, _I64(before + a * weights[0] - b * weights[1])
        jobs.append(partial(_areas, kept, counted, run, (of_a, of_b), scratch, result))
    at_once(jobs, int(work[-1]))
    return result
