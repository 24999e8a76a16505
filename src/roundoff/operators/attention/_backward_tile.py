"""One tile of attention's gradients in compiled loops: from S and dP to P and dS, in the cache.

    S, dP [R,m]    the subtrahend made of LSE, and D [R]

The steps of `backward_steps`, on a few rows at a time. S holds no NaN, and no infinity but -inf;
dP may hold anything once D was taken from it.
"""
# Types in here are Numba's, which has no stubs.
# pyright: reportUntypedFunctionDecorator=false, reportMissingParameterType=false
# pyright: reportUnknownArgumentType=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownParameterType=false

from __future__ import annotations

import numba
import numpy as np

from roundoff.formats._numba import threads
from roundoff.operators._numba import LOG2_E, compiled, compiled_for_threads, inner
from roundoff.operators._vector import fma, wide
from roundoff.operators.attention._places import (
    ARGUMENT,
    BASE_2,
    BY_FMA,
    DIFFERENCE,
    DP,
    DS,
    EXP,
    FACTOR_OF_DS,
    ONTO_DS,
    PLAIN,
    SCALED_DS,
    SUBTRACT,
    TIMES_LOG2_E,
    WAITING,
    WEIGHTS,
)
from roundoff.operators.attention._product import add_up, add_up_together
from roundoff.operators.attention._rounded import put_all, put_sure
from roundoff.operators.attention._tile import AT_ONCE, HIGH, hide, scaled
from roundoff.operators.attention._weighing import powers

__all__ = ["add_up", "add_up_together", "differentiate", "differentiate_together", "threads"]

_F, _I = np.float32, np.int32


@inner
def _diminished(S, less, how, c):
    wide()
    for r in range(S.shape[0]):
        b = less[r]
        if how == PLAIN:
            for j in range(S.shape[1]):
                S[r, j] = _F(S[r, j] - b)
        elif how == BY_FMA:
            for j in range(S.shape[1]):
                S[r, j] = fma(S[r, j], c, _F(-b))
        else:
            for j in range(S.shape[1]):
                S[r, j] = _F(_F(S[r, j] * c) - b)


@inner
def _weights(S, less, plans, settings):
    """P = exp(S - LSE), which is large where LSE was rounded or is not that of these scores."""
    wide()
    x = S.reshape(-1)
    _diminished(S, less, settings[SUBTRACT], settings[WAITING])
    if settings[TIMES_LOG2_E] != 0:
        for i in range(x.size):
            x[i] = _F(x[i] * LOG2_E)
    put_all(x, plans[ARGUMENT])
    high = _I(0)
    for i in range(x.size):
        high = _I(high | _I(x[i] > HIGH))
    powers(x, settings[BASE_2] != 0, high != 0)
    put_all(x, plans[EXP])


@inner
def _gradient(P, dP, delta, plans, settings):
    """dS = P (dP - D), in place of dP."""
    wide()
    x, y = P.reshape(-1), dP.reshape(-1)
    put_sure(y, plans[DP])
    for r in range(dP.shape[0]):
        d = delta[r]
        for j in range(dP.shape[1]):
            dP[r, j] = _F(dP[r, j] - d)
    put_sure(y, plans[DIFFERENCE])
    for i in range(y.size):
        y[i] = _F(x[i] * y[i])
    put_sure(y, plans[DS])
    if settings[ONTO_DS] != 0:
        c = settings[FACTOR_OF_DS]
        for i in range(y.size):
            y[i] = _F(y[i] * c)
        put_sure(y, plans[SCALED_DS])


@inner
def _rows(S, dP, columns, seen, at, how):
    """Rows `at[0]` to `at[1]` of a tile, some at a time; `at[2]` is the tile's first key."""
    first, last, start = at
    plans, settings = how
    some = max(1, AT_ONCE // S.shape[1])
    for begin in range(first, last, some):
        rows = slice(begin, min(begin + some, last))
        P = S[rows]
        scaled(P.reshape(-1), plans, settings)
        if seen.shape[1]:
            hide(P, seen, begin, start)
        _weights(P, columns[0, rows], plans, settings)
        _gradient(P, dP[rows], columns[1, rows], plans, settings)
        put_all(P.reshape(-1), plans[WEIGHTS])


@compiled
def differentiate(S, dP, columns, seen, start, how):
    """Make S into P as it enters dV, and dP into dS as it enters dQ and dK.

    `columns` [2,R] is what each row's scores are diminished by, and its D. `seen` and `start` are
    those of `_tile.take_in`, `how` its plans and settings.
    """
    _rows(S, dP, columns, seen, (0, S.shape[0], start), how)


@compiled_for_threads
def differentiate_together(S, dP, columns, seen, start, how):
    """The same on several threads."""
    R, m = S.shape
    some = max(1, AT_ONCE // m)
    for part in numba.prange((R + some - 1) // some):
        at = part * some, min((part + 1) * some, R), start
        _rows(S, dP, columns, seen, at, how)
