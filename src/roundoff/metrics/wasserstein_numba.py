"""The compiled loops of counting: histograms, lower halves by part, areas between two sides.

A float32 is taken as its ordered code: the sign bit flipped, or all bits where it is set.
"""
# Types in here are Numba's, which has no stubs.
# pyright: reportUntypedFunctionDecorator=false, reportMissingParameterType=false
# pyright: reportUnknownArgumentType=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownParameterType=false

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from roundoff.metrics.at_once import at_once, parts_for_threads
from roundoff.metrics.instructions import LANES, ROWS, area, lowest

__all__ = ["areas", "compiled", "count_codes", "count_lower", "count_parts", "keep_lower"]

CODES = 1 << 16
WORDS = CODES // 64
DENSE = 1 << 12
"""From this many numbers on, all codes of a part are gone through, not those that occur."""
_U32, _U64, _I64 = np.uint32, np.uint64, np.int64
_16, _12, _6, _LOW, _SIGN = _U32(16), _I64(12), _I64(6), _U32(0xFFFF), _U32(0x80000000)


def compiled(function: Callable[..., Any]) -> Any:
    """Compile when first called, and keep the code on the disk if there is a place for it."""
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:
        return numba.njit(nogil=True)(function)


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


@compiled
def _count_lower(x, part, counts):
    for i in range(x.size):
        code = _code(x[i])
        if code >> _16 == part:
            counts[code & _LOW] += _I64(1)


@compiled
def _keep_lower(x, first, places, lower):
    parts = _U32(places.size)
    for i in range(x.size):
        code = _code(x[i])
        part = _U32(_U32(code >> _16) - first)
        if part < parts:
            at = places[part]
            lower[at] = np.uint16(code & _LOW)
            places[part] = at + _I64(1)


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


@compiled
def _areas(lower, starts, run, weights, scratch, result):
    (first, last, ahead), (of_a, of_b), (net, seen, words) = run, weights, scratch
    for part in range(first, last):
        start, middle, end = starts[0, part], starts[1, part], starts[0, part + 1]
        a, b = lower[start:middle], lower[middle:end]
        if end - start >= DENSE:
            _add(a, of_a, net)
            _add(b, -of_b, net)
            # The step from the last code leads out of the part.
            last_ahead = ahead + _I64(a.size) * of_a - _I64(b.size) * of_b
            result[part] = area(net, ahead) - np.float64(abs(last_ahead))
        elif end > start:
            _mark(a, of_a, net, seen, words)
            _mark(b, -of_b, net, seen, words)
            result[part] = _marked_area(ahead, net, seen, words)
        ahead += _I64(a.size) * of_a - _I64(b.size) * of_b


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


def count_lower(
    a: NDArray[np.uint32], b: NDArray[np.uint32], part: int, counts: NDArray[np.int64]
) -> None:
    """Add to the counts of both sides by the lower halves of the codes of one part."""
    jobs = [partial(_count_lower, x, _U32(part), counts[s]) for s, x in enumerate((a, b))]
    at_once(jobs, a.size)


def keep_lower(
    a: NDArray[np.uint32], b: NDArray[np.uint32], first: int,
    places: NDArray[np.int64], lower: NDArray[np.uint16],
) -> None:  # fmt: skip
    """Write the lower halves of codes to the places of their parts, and move these on."""
    jobs = [
        partial(_keep_lower, x, _U32(first), places[side], lower) for side, x in enumerate((a, b))
    ]
    at_once(jobs, a.size)


def areas(
    lower: NDArray[np.uint16], starts: NDArray[np.int64], before: int, weights: tuple[int, int]
) -> NDArray[np.float64]:
    """Return the area between the two sides inside each part, in steps of a code.

    The lower halves of part p stand at starts[0, p] (of a), starts[1, p] (of b) and up to
    starts[0, p + 1]; `before` is how far a is ahead at the first.
    """
    result = np.zeros(starts.shape[1] - 1)
    # Of samples of one size, no more are counted than fit into memory, and half as wide.
    narrow = np.int32 if weights == (1, 1) and lower.size < 1 << 31 else np.int64
    of_a, of_b = _I64(weights[0]), _I64(weights[1])
    jobs: list[partial[None]] = []
    for cut in parts_for_threads(lower.size):
        first, last = np.searchsorted(starts[0], (cut.start, cut.stop)).tolist()
        a = int((starts[1, :first] - starts[0, :first]).sum())
        ahead = before + a * weights[0] - (int(starts[0, first]) - a) * weights[1]
        marks = np.zeros(WORDS, np.int64), np.zeros(WORDS // 64, np.int64)
        scratch = np.zeros(CODES, narrow), *marks
        if cut.stop == lower.size:
            last = result.size
        run = first, last, _I64(ahead)
        jobs.append(partial(_areas, lower, starts, run, (of_a, of_b), scratch, result))
    at_once(jobs, lower.size)
    return result
