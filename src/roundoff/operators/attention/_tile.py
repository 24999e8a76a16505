"""One tile of keys in compiled loops: what `engine` does a step at a time, in the cache.

    S [R,K] scores, which become P    O, part [R,Dv]
    state [5,R]: m, l, the factor exp(m_old - m), rescales, rescaled_by

A few rows at a time go through all steps; a step is one loop that LLVM turns into vectors, and
which steps there are is decided outside the loops. S holds no NaN, and no infinity but -inf.
"""
# Types in here are Numba's, which has no stubs.
# pyright: reportUntypedFunctionDecorator=false, reportMissingParameterType=false
# pyright: reportUnknownArgumentType=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownParameterType=false

from __future__ import annotations

import numba
import numpy as np

from roundoff.formats._kernels import nearest_bits
from roundoff.formats._numba import threads
from roundoff.operators._numba import compiled, compiled_for_threads, exact, exact_2, low, low_2
from roundoff.operators._vector import bits, fma, number, sum_of_64, sum_of_row_of_128, wide

__all__ = ["add_up", "add_up_together", "take_in", "take_in_together", "threads"]

_F, _I = np.float32, np.int32
AT_ONCE = 4096  # elements of S that go through all steps together
LANES = 64
HIDDEN = _F(-np.inf)
ZERO, NEGATIVE_ZERO = _F(0), _F(-0.0)
HIGH = _F(30)
INFINITE = _I(0x7F800000)
LOG2_E = _F(1.4426950408889634)

# Rows of `plans`, one for each place at which something is rounded; `fused` fills them.
QK, SCORES, LOGITS, ARGUMENT, EXP, WEIGHTS, MAXIMUM, FACTOR, ADDED, SUM, PRODUCT, OUT = range(12)
NOT_AT_ALL, BY_DROPPING, IN_FULL = range(3)
# Entries of `settings`: numbers, and then what the steps do.
SCALE, WAITING, EXPONENT, UNIT, THRESHOLD, QUANTUM = range(6)
SCALED, SUBTRACT, TIMES_LOG2_E, BASE_2, AFTER, LAZY, QUANTIZED = range(6, 13)
PLAIN, BY_FMA, TIMES = range(3)


@numba.njit(nogil=True)
def _dropped(x, last):
    """`x` to the nearest number of a format with float32's exponents; `last` is its last bit."""
    b = bits(x)
    below_half = _I(_I(last >> _I(1)) - _I(1))
    half = _I(last >> _I(1))
    return number(_I(_I(b + (below_half if _I(b & last) == 0 else half)) & _I(-last)))


@numba.njit(nogil=True)
def _in_full(x, plan):
    """`x` rounded as `arithmetic.put` does it: infinities and NaN stay."""
    b = bits(x)
    r = nearest_bits(b, plan)
    return x if _I(b & _I(0x7FFFFFFF)) >= INFINITE else number(r)


@numba.njit(nogil=True)
def _plan(plans, at):
    return (
        plans[at, 1], plans[at, 2], plans[at, 3], plans[at, 4], plans[at, 5], plans[at, 6],
        plans[at, 7], plans[at, 8],
    )  # fmt: skip


@numba.njit(nogil=True)
def _put(x, plans, at):
    return x if plans[at, 0] == NOT_AT_ALL else _in_full(x, _plan(plans, at))


@numba.njit(nogil=True)
def _put_all(x, plans, at):
    """The same for all of `x`, among which there is no NaN."""
    wide()
    if plans[at, 0] == BY_DROPPING:
        last = _I(_I(1) << _I(plans[at, 1] & _I(31)))
        for i in range(x.size):
            x[i] = _dropped(x[i], last)
    elif plans[at, 0] == IN_FULL:
        plan = _plan(plans, at)
        for i in range(x.size):
            x[i] = _in_full(x[i], plan)


@numba.njit(nogil=True)
def _scaled(x, plans, settings):
    wide()
    _put_all(x, plans, QK)
    _put_all(x, plans, SCORES)
    if settings[SCALED] != 0:
        c = settings[SCALE]
        for i in range(x.size):
            x[i] = _F(x[i] * c)
        _put_all(x, plans, LOGITS)


@numba.njit(nogil=True)
def _hide(S, seen, begin, start):
    for r in range(S.shape[0]):
        first = min(max(0, seen[0, begin + r] - start), S.shape[1])
        beyond = min(max(0, seen[1, begin + r] - start), S.shape[1])
        S[r, :first] = HIDDEN
        S[r, beyond:] = HIDDEN


@numba.njit(nogil=True)
def _largest(S, column):
    """The largest of each row without NaN, by integers: LLVM makes vectors of their maximum."""
    wide()
    for r in range(S.shape[0]):
        most = bits(S[r, 0])
        for j in range(S.shape[1]):
            most = max(most, bits(S[r, j]))
        if most < 0:  # negative all: the smallest integer is nearest to zero
            for j in range(S.shape[1]):
                most = min(most, bits(S[r, j]))
        column[r] = number(most)


@numba.njit(nogil=True)
def _new_state(state, begin, column, plans, settings):
    """The maximum, the factor and the counts of each row; how high the exponent will go.

    In place of a row's largest score, `column` has the shift afterwards.
    """
    high = HIDDEN
    for r in range(column.size):
        at, top = begin + r, column[r]
        m = state[0, at]
        new = top if top > m else m
        low_rise = _F(_F(top - m) * settings[UNIT]) <= settings[THRESHOLD]
        if settings[LAZY] != 0 and m != HIDDEN and low_rise:
            new = m
        new = _put(new, plans, MAXIMUM)
        shift = ZERO if new == HIDDEN else new
        if new > m and m != HIDDEN:
            state[3, at] += _F(1)
            state[4, at] += _F(_F(new - m) * settings[UNIT])
        state[0, at], column[r] = new, shift
        state[2, at] = _F(_F(m - shift) * settings[EXPONENT])
        rest = _F(_F(top - shift) * settings[EXPONENT])
        high = rest if rest > high else high
    factors = state[2, begin : begin + column.size]
    _powers(factors, settings[BASE_2] != 0, True)
    _put_all(factors, plans, FACTOR)
    return high


@numba.njit(nogil=True)
def _diminished(S, column, how, c):
    wide()
    for r in range(S.shape[0]):
        shift = column[r]
        d = _F(-_F(shift * c))
        if how == PLAIN:
            for j in range(S.shape[1]):
                S[r, j] = _F(S[r, j] - shift)
        elif how == BY_FMA:
            for j in range(S.shape[1]):
                S[r, j] = fma(S[r, j], c, d)
        else:
            for j in range(S.shape[1]):
                S[r, j] = _F(_F(S[r, j] - shift) * c)


@numba.njit(nogil=True)
def _powers(x, base_2, high):
    """exp or 2^x of all; the shorter functions where nothing is high."""
    wide()
    if high:
        for i in range(x.size):
            x[i] = exact_2(x[i]) if base_2 else exact(x[i])
    elif base_2:
        for i in range(x.size):
            x[i] = low_2(x[i])
    else:
        for i in range(x.size):
            x[i] = low(x[i])


@numba.njit(nogil=True)
def _row_sums(S, y, column):
    """The sum of each row as `arithmetic.row_sum` adds it up; `y` has room for whole groups."""
    wide()
    for r in range(S.shape[0]):
        n = y.size
        for j in range(S.shape[1]):
            y[j] = S[r, j]
        y[S.shape[1] :] = NEGATIVE_ZERO
        while n > LANES:
            kept = (n // LANES + 1) // 2 * LANES
            for j in range(n - kept):
                y[j] = _F(y[j] + y[j + kept])
            n = kept
        column[r] = sum_of_64(y)


@numba.njit(nogil=True)
def _row_sums_of_128(S, column):
    """The same for the usual tile, which need not be copied first."""
    wide()
    for r in range(S.shape[0]):
        column[r] = sum_of_row_of_128(S, r)


@numba.njit(nogil=True)
def _sums(S, begin, state, plans, room, column):
    wide()
    if S.shape[1] == 128:
        _row_sums_of_128(S, column)
    else:
        _row_sums(S, room, column)
    for r in range(column.size):
        at = begin + r
        old = _put(_F(state[1, at] * state[2, at]), plans, ADDED)
        added = _put(column[r], plans, ADDED)
        state[1, at] = _put(_F(old + added), plans, SUM)


@numba.njit(nogil=True)
def _cast(x, plans, settings):
    wide()
    if settings[QUANTIZED] != 0:
        c = settings[QUANTUM]
        for i in range(x.size):
            x[i] = _F(x[i] * c)
        _put_all(x, plans, WEIGHTS)
        for i in range(x.size):
            x[i] = _F(x[i] / c)
    else:
        _put_all(x, plans, WEIGHTS)


@numba.njit(nogil=True)
def _take_in(S, at, state, seen, plans, settings):
    """Some rows of the tile through all steps; `at` is the first of them, and the first key."""
    wide()
    begin, start = at
    R, K = S.shape
    x, column = S.reshape(-1), np.empty(R, np.float32)
    room = np.empty((K + LANES - 1) // LANES * LANES, np.float32)
    _scaled(x, plans, settings)
    if seen.shape[1]:
        _hide(S, seen, begin, start)
    _largest(S, column)
    high = _new_state(state, begin, column, plans, settings)
    _diminished(S, column, settings[SUBTRACT], settings[WAITING])
    if settings[TIMES_LOG2_E] != 0:
        for i in range(x.size):
            x[i] = _F(x[i] * LOG2_E)
    _put_all(x, plans, ARGUMENT)
    _powers(x, settings[BASE_2] != 0, high > HIGH)
    _put_all(x, plans, EXP)
    if settings[AFTER] == 0:
        _sums(S, begin, state, plans, room, column)
    _cast(x, plans, settings)
    if settings[AFTER] != 0:
        _sums(S, begin, state, plans, room, column)


@compiled
def take_in(scores, state, seen, start, plans, settings):
    """Make S into P, and the state before the tile into that after it.

    `seen` [2,R] is the first key that a row sees and the first that it does not see any more,
    of all keys; `start` is the tile's first. [2,0] where every row sees the whole tile.
    """
    R, K = scores.shape
    some = max(1, AT_ONCE // K)
    for begin in range(0, R, some):
        S = scores[begin : min(begin + some, R)]
        _take_in(S, (begin, start), state, seen, plans, settings)


@compiled_for_threads
def take_in_together(scores, state, seen, start, plans, settings):
    """The same on several threads."""
    R, K = scores.shape
    some = max(1, AT_ONCE // K)
    for part in numba.prange((R + some - 1) // some):
        begin = part * some
        S = scores[begin : min(begin + some, R)]
        _take_in(S, (begin, start), state, seen, plans, settings)


@numba.njit(nogil=True)
def _put_sure(x, plans, at):
    """Like `_put_all`, for values among which there may be NaN."""
    wide()
    if plans[at, 0] == BY_DROPPING:
        last = _I(_I(1) << _I(plans[at, 1] & _I(31)))
        for i in range(x.size):
            x[i] = x[i] if x[i] != x[i] else _dropped(x[i], last)
    elif plans[at, 0] == IN_FULL:
        _put_all(x, plans, at)


@numba.njit(nogil=True)
def _add_up(o, part, factors, first, last, plans):
    wide()
    x, y = o.reshape(-1), part.reshape(-1)
    if first:
        x[:] = y
    else:
        _put_sure(y, plans, PRODUCT)
        for i in range(x.size):
            x[i] = _F(x[i] + y[i])
    _put_sure(x, plans, OUT)
    if not last:
        for r in range(o.shape[0]):
            factor = factors[r]
            for i in range(o.shape[1]):
                o[r, i] = _F(o[r, i] * factor)
        _put_sure(x, plans, PRODUCT)


@compiled
def add_up(o, part, state, first, last, plans):
    """Add the product of a tile to O, and take O to the next maximum unless it was the `last`."""
    some = max(1, AT_ONCE // max(1, o.shape[1]))
    for begin in range(0, o.shape[0], some):
        end = min(begin + some, o.shape[0])
        _add_up(o[begin:end], part[begin:end], state[2, begin:end], first, last, plans)


@compiled_for_threads
def add_up_together(o, part, state, first, last, plans):
    """The same on several threads."""
    some = max(1, AT_ONCE // max(1, o.shape[1]))
    for part_of in numba.prange((o.shape[0] + some - 1) // some):
        begin = part_of * some
        end = min(begin + some, o.shape[0])
        _add_up(o[begin:end], part[begin:end], state[2, begin:end], first, last, plans)
