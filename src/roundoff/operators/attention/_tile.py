"""One tile of keys in compiled loops: what `engine` does a step at a time, in the cache.

    S [R,K] scores, which become P    O, part [R,Dv]
    state [6,R]: m, l, the factor exp(m_old - m), rescales, rescaled_by, the shift taken from S

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
from roundoff.operators._numba import compiled, exact, exact_2, low, low_2
from roundoff.operators._vector import bits, fma, number, wide

__all__ = ["add_up", "take_in"]

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
def _dropped(x, drop):
    """`x` to the nearest number with `drop` bits less, for a format with float32's exponents."""
    b = bits(x)
    odd = _I(_I(b >> drop) & _I(1))
    half = _I(_I(_I(1) << _I(drop - _I(1))) - _I(1))
    return number(_I(_I(b + _I(half + odd)) & _I(-_I(_I(1) << drop))))


@numba.njit(nogil=True)
def _put(x, plan):
    """`x` rounded as `arithmetic.put` does it: infinities and NaN stay."""
    if plan[0] == NOT_AT_ALL:
        return x
    b = bits(x)
    numbers = (plan[1], plan[2], plan[3], plan[4], plan[5], plan[6], plan[7], plan[8])
    r = nearest_bits(b, numbers)
    return x if _I(b & _I(0x7FFFFFFF)) >= INFINITE else number(r)


@numba.njit(nogil=True)
def _put_all(x, plan):
    wide()
    if plan[0] == BY_DROPPING:
        drop = _I(plan[1] & _I(31))
        for i in range(x.size):
            x[i] = _dropped(x[i], drop)
    elif plan[0] == IN_FULL:
        numbers = (plan[1], plan[2], plan[3], plan[4], plan[5], plan[6], plan[7], plan[8])
        for i in range(x.size):
            b = bits(x[i])
            r = nearest_bits(b, numbers)
            x[i] = number(b if _I(b & _I(0x7FFFFFFF)) == INFINITE else r)


@numba.njit(nogil=True)
def _scaled(x, plans, settings):
    wide()
    _put_all(x, plans[QK])
    _put_all(x, plans[SCORES])
    if settings[SCALED] != 0:
        c = settings[SCALE]
        for i in range(x.size):
            x[i] = _F(x[i] * c)
        _put_all(x, plans[LOGITS])


@numba.njit(nogil=True)
def _largest(s):
    """The largest of a row without NaN, by integers: LLVM makes vectors of their maximum."""
    wide()
    most = bits(s[0])
    for j in range(s.size):
        most = max(most, bits(s[j]))
    if most < 0:  # negative all: the smallest integer is nearest to zero
        for j in range(s.size):
            most = min(most, bits(s[j]))
    return number(most)


@numba.njit(nogil=True)
def _new_state(state, at, top, plans, settings):
    """The maximum, the factor and the counts of one row; how high the exponent will go."""
    m = state[0, at]
    new = top if top > m else m
    if (
        settings[LAZY] != 0
        and m != HIDDEN
        and _F(_F(top - m) * settings[UNIT]) <= settings[THRESHOLD]
    ):
        new = m
    new = _put(new, plans[MAXIMUM])
    shift = ZERO if new == HIDDEN else new
    exponent = _F(_F(m - shift) * settings[EXPONENT])
    factor = exact_2(exponent) if settings[BASE_2] != 0 else exact(exponent)
    if new > m and m != HIDDEN:
        state[3, at] += _F(1)
        state[4, at] += _F(_F(new - m) * settings[UNIT])
    state[0, at], state[2, at], state[5, at] = new, _put(factor, plans[FACTOR]), shift
    return _F(_F(top - shift) * settings[EXPONENT])


@numba.njit(nogil=True)
def _diminished(s, shift, how, c):
    wide()
    if how == PLAIN:
        for j in range(s.size):
            s[j] = _F(s[j] - shift)
    elif how == BY_FMA:
        d = _F(-_F(shift * c))
        for j in range(s.size):
            s[j] = fma(s[j], c, d)
    else:
        for j in range(s.size):
            s[j] = _F(_F(s[j] - shift) * c)


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
def _folded(s, y, lanes):
    """A row's sums in 16 lanes; `y` has room for the row in whole groups of 64."""
    wide()
    n = (s.size + LANES - 1) // LANES * LANES
    kept = (n // LANES + 1) // 2 * LANES
    above = max(0, s.size - kept)
    for j in range(above):
        y[j] = _F(s[j] + s[j + kept])
    for j in range(above, min(kept, s.size)):
        y[j] = s[j]
    for j in range(s.size, kept):
        y[j] = NEGATIVE_ZERO
    n = kept
    while n > LANES:
        kept = (n // LANES + 1) // 2 * LANES
        for j in range(n - kept):
            y[j] = _F(y[j] + y[j + kept])
        n = kept
    for j in range(16):
        lanes[j] = _F(_F(y[j] + y[j + 32]) + _F(y[j + 16] + y[j + 48]))


@numba.njit(nogil=True)
def _sum_of_16(x):
    a, b = _F(x[0] + x[8]), _F(x[1] + x[9])
    c, d = _F(x[2] + x[10]), _F(x[3] + x[11])
    e, f = _F(x[4] + x[12]), _F(x[5] + x[13])
    g, h = _F(x[6] + x[14]), _F(x[7] + x[15])
    return _F(_F(_F(a + e) + _F(c + g)) + _F(_F(b + f) + _F(d + h)))


@numba.njit(nogil=True)
def _sums(S, begin, end, state, plans, room):
    y, lanes = room
    for r in range(begin, end):
        _folded(S[r], y, lanes[r - begin])
    for r in range(begin, end):
        old = _put(_F(state[1, r] * state[2, r]), plans[ADDED])
        added = _put(_sum_of_16(lanes[r - begin]), plans[ADDED])
        state[1, r] = _put(_F(old + added), plans[SUM])


@numba.njit(nogil=True)
def _cast(x, plans, settings):
    wide()
    if settings[QUANTIZED] != 0:
        c = settings[QUANTUM]
        for i in range(x.size):
            x[i] = _F(x[i] * c)
        _put_all(x, plans[WEIGHTS])
        for i in range(x.size):
            x[i] = _F(x[i] / c)
    else:
        _put_all(x, plans[WEIGHTS])


@numba.njit(nogil=True)
def _hide(S, begin, end, seen, start):
    for r in range(begin, end):
        s = S[r]
        first = min(max(0, seen[0, r] - start), s.size)
        end_of = min(max(0, seen[1, r] - start), s.size)
        s[:first] = HIDDEN
        s[end_of:] = HIDDEN


@compiled
def take_in(S, state, seen, start, plans, settings):
    """Make S into P, and the state before the tile into that after it.

    `seen` [2,R] is the first key that a row sees and the first that it does not see any more,
    of all keys; `start` is the tile's first. [2,0] where every row sees the whole tile.
    """
    wide()
    R, K = S.shape
    flat = S.reshape(-1)
    some = max(1, AT_ONCE // K)
    room = (
        np.empty((K + LANES - 1) // LANES * LANES, np.float32),
        np.empty((some, 16), np.float32),
    )
    for begin in range(0, R, some):
        end = min(begin + some, R)
        x = flat[begin * K : end * K]
        _scaled(x, plans, settings)
        if seen.shape[1]:
            _hide(S, begin, end, seen, start)
        high = HIDDEN
        for r in range(begin, end):
            top = _new_state(state, r, _largest(S[r]), plans, settings)
            high = top if top > high else high
        for r in range(begin, end):
            _diminished(S[r], state[5, r], settings[SUBTRACT], settings[WAITING])
        if settings[TIMES_LOG2_E] != 0:
            for i in range(x.size):
                x[i] = _F(x[i] * LOG2_E)
        _put_all(x, plans[ARGUMENT])
        _powers(x, settings[BASE_2] != 0, high > HIGH)
        _put_all(x, plans[EXP])
        if settings[AFTER] == 0:
            _sums(S, begin, end, state, plans, room)
        _cast(x, plans, settings)
        if settings[AFTER] != 0:
            _sums(S, begin, end, state, plans, room)


@numba.njit(nogil=True)
def _put_sure(x, plan):
    """Like `_put_all`, for values among which there may be NaN."""
    wide()
    if plan[0] == BY_DROPPING:
        drop = _I(plan[1] & _I(31))
        for i in range(x.size):
            x[i] = x[i] if x[i] != x[i] else _dropped(x[i], drop)
    elif plan[0] == IN_FULL:
        for i in range(x.size):
            x[i] = _put(x[i], plan)


@compiled
def add_up(o, part, state, first, last, plans):
    """Add the product of a tile to O, and take O to the next maximum unless it was the `last`."""
    wide()
    R, D = o.shape
    some = max(1, AT_ONCE // max(1, D))
    flat, more = o.reshape(-1), part.reshape(-1)
    for begin in range(0, R, some):
        end = min(begin + some, R)
        x, y = flat[begin * D : end * D], more[begin * D : end * D]
        if first:
            x[:] = y
        else:
            _put_sure(y, plans[PRODUCT])
            for i in range(x.size):
                x[i] = _F(x[i] + y[i])
        _put_sure(x, plans[OUT])
        if not last:
            for r in range(begin, end):
                row, factor = o[r], state[2, r]
                for i in range(D):
                    row[i] = _F(row[i] * factor)
            _put_sure(x, plans[PRODUCT])
