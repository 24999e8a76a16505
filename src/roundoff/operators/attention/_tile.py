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

from roundoff.formats._numba import threads
from roundoff.operators._numba import compiled, compiled_for_threads, inner
from roundoff.operators._vector import largest_of_row, wide
from roundoff.operators.attention._places import (
    ADDED,
    BASE_2,
    BY_DROPPING,
    EXPONENT,
    FACTOR,
    LAZY,
    LOGITS,
    MAXIMUM,
    QK,
    SCALE,
    SCALED,
    SCORES,
    SUM,
    THRESHOLD,
    UNIT,
)
from roundoff.operators.attention._rounded import dropped, last_bit, put_all, put_times
from roundoff.operators.attention._weighing import LANES, powers, weigh

__all__ = [
    "hide",
    "scaled",
    "take_in",
    "take_in_together",
    "threads",
]

_F, _I = np.float32, np.int32
AT_ONCE = 4096  # elements of S that go through all steps together
HIDDEN = _F(-np.inf)
ZERO = _F(0)
HIGH = _F(30)


@inner
def scaled(x, plans, settings):
    """S as the product left it through roundings and scale; the usual roundings take one loop."""
    wide()
    twice = plans[QK, 0] == plans[LOGITS, 0] == BY_DROPPING and plans[SCORES, 0] == 0
    if twice and settings[SCALED] != 0:
        c, first, second = settings[SCALE], last_bit(plans[QK]), last_bit(plans[LOGITS])
        for i in range(x.size):
            x[i] = dropped(_F(dropped(x[i], first) * c), second)
        return
    put_all(x, plans[QK])
    put_all(x, plans[SCORES])
    if settings[SCALED] != 0:
        put_times(x, settings[SCALE], plans[LOGITS])


@inner
def hide(S, seen, begin, start):
    for r in range(S.shape[0]):
        first = min(max(0, seen[0, begin + r] - start), S.shape[1])
        beyond = min(max(0, seen[1, begin + r] - start), S.shape[1])
        for j in range(first):
            S[r, j] = HIDDEN
        for j in range(beyond, S.shape[1]):
            S[r, j] = HIDDEN


@inner
def _largest(S, column):
    wide()
    for r in range(S.shape[0]):
        column[r] = largest_of_row(S, r)


@inner
def _new_maximum(m, top, new, settings):
    wide()
    threshold, unit = settings[THRESHOLD], settings[UNIT]
    if settings[LAZY] != 0:
        for r in range(m.size):
            stays = (m[r] != HIDDEN) & (_F(_F(top[r] - m[r]) * unit) <= threshold)
            new[r] = m[r] if stays | (m[r] > top[r]) else top[r]
    else:
        for r in range(m.size):
            new[r] = m[r] if m[r] > top[r] else top[r]


@inner
def _new_state(state, top, new, plans, settings):
    """The maximum, the factor and the counts of each row; whether an exponent will be high.

    In place of a row's largest score, `top` has the shift afterwards.
    """
    wide()
    m, _, factor, rescales, rescaled_by = state
    exponent, unit = settings[EXPONENT], settings[UNIT]
    _new_maximum(m, top, new, settings)
    put_all(new, plans[MAXIMUM])
    high = _I(0)
    for r in range(m.size):
        risen = (new[r] > m[r]) & (m[r] != HIDDEN)
        rescales[r] = _F(rescales[r] + (_F(1) if risen else ZERO))
        rescaled_by[r] = _F(rescaled_by[r] + (_F(_F(new[r] - m[r]) * unit) if risen else ZERO))
        shift = ZERO if new[r] == HIDDEN else new[r]
        factor[r] = _F(_F(m[r] - shift) * exponent)
        high = _I(high | _I(_F(_F(top[r] - shift) * exponent) > HIGH))
        m[r], top[r] = new[r], shift
    powers(factor, settings[BASE_2] != 0, True)
    put_all(factor, plans[FACTOR])
    return high != 0


@inner
def _new_sums(state, column, plans):
    """l of each row, `column` the sums of this tile."""
    wide()
    l, factor = state[1], state[2]  # noqa: E741 - the paper's letter
    for r in range(l.size):
        l[r] = _F(l[r] * factor[r])
    put_all(l, plans[ADDED])
    put_all(column, plans[ADDED])
    for r in range(l.size):
        l[r] = _F(l[r] + column[r])
    put_all(l, plans[SUM])


@inner
def _rescale(o, factors):
    """O of earlier tiles to the new maximum, which few rows have after the first tiles."""
    wide()
    for r in range(o.shape[0]):
        if factors[r] != _F(1):
            for i in range(o.shape[1]):
                o[r, i] = _F(o[r, i] * factors[r])


@inner
def _take_in(tile, at, state, seen, how, room):
    """Some rows of S and O through all steps; `at` is the first of them, and the first key."""
    wide()
    S, o = tile
    begin, start = at
    plans, settings = how
    columns, spare = room
    x, column, new = S.reshape(-1), columns[0, : S.shape[0]], columns[1, : S.shape[0]]
    scaled(x, plans, settings)
    if seen.shape[1]:
        hide(S, seen, begin, start)
    _largest(S, column)
    high = _new_state(state, column, new, plans, settings)
    if o.shape[1]:
        _rescale(o, state[2])
    weigh(S, column, spare, high, how)
    _new_sums(state, column, plans)


@inner
def _take_in_rows(tile, state, seen, at, how, room):
    """Rows `at[0]` to `at[1]` of a tile, some at a time; `at[2]` is the tile's first key."""
    scores, o = tile
    first, last, start = at
    some = room[0].shape[1]
    for begin in range(first, last, some):
        rows = slice(begin, min(begin + some, last))
        parts = state[0, rows], state[1, rows], state[2, rows], state[3, rows], state[4, rows]
        _take_in((scores[rows], o[rows]), (begin, start), parts, seen, how, room)


@compiled
def take_in(scores, o, state, seen, start, how):
    """Make S into P, and the state before the tile into that after it; `how`: plans, settings.

    `o` [R,Dv] goes to the new maximum; [R,0] where that is left to `_product.add_up`.
    `seen` [2,R] is the first key that a row sees and the first that it does not see any more,
    of all keys; `start` is the tile's first. [2,0] where every row sees the whole tile.
    """
    R, K = scores.shape
    room = np.empty((2, max(1, AT_ONCE // K)), np.float32), np.empty(K + LANES, np.float32)
    _take_in_rows((scores, o), state, seen, (0, R, start), how, room)


@compiled_for_threads
def take_in_together(scores, o, state, seen, start, how):
    """The same on several threads."""
    R, K = scores.shape
    some = max(1, AT_ONCE // K)
    for part in numba.prange((R + some - 1) // some):
        room = np.empty((2, some), np.float32), np.empty(K + LANES, np.float32)
        at = part * some, min((part + 1) * some, R), start
        _take_in_rows((scores, o), state, seen, at, how, room)
