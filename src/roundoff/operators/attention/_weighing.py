"""From a tile's scores to its weights and their row sums: argument, exponential, sum and cast.

    S [R,K] scores, which become P    column [R] shifts, which become row sums

The usual recipes take one loop over a row, so that its numbers stay in registers between these
steps; all others a loop for each step.
"""
# Types in here are Numba's, which has no stubs.
# pyright: reportUntypedFunctionDecorator=false, reportMissingParameterType=false
# pyright: reportUnknownArgumentType=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownParameterType=false

from __future__ import annotations

from typing import Any

import numpy as np

from roundoff.operators._lanes import Formula, Lanes, along_row, in_place
from roundoff.operators._numba import LOG2_E, exact, exact_2, inner, low_2_of, low_of
from roundoff.operators._vector import fma, sum_of_64, sum_of_128, wide
from roundoff.operators.attention._places import (
    AFTER,
    ARGUMENT,
    BASE_2,
    BY_DROPPING,
    BY_FMA,
    EXP,
    PLAIN,
    QUANTIZED,
    QUANTUM,
    SUBTRACT,
    TIMES,
    TIMES_LOG2_E,
    WAITING,
    WEIGHTS,
)
from roundoff.operators.attention._rounded import dropped_of, last_bit, put_all, put_times

__all__ = ["LANES", "powers", "weigh"]

_F, _I = np.float32, np.int32
LANES = 64
NEGATIVE_ZERO = _F(-0.0)
_low, _low_2 = in_place(low_of), in_place(low_2_of)


@inner
def powers(x, base_2, high):
    """exp or 2^x of all; the shorter functions where nothing is high."""
    wide()
    if high:
        for i in range(x.size):
            x[i] = exact_2(x[i]) if base_2 else exact(x[i])
    elif base_2:
        _low_2(x, ())
    else:
        _low(x, ())


@inner
def _row_sum(y, count):
    """The sum of the first of `y` as `arithmetic.row_sum` adds them up; -0 up to whole lanes."""
    wide()
    if count == 128:
        return sum_of_128(y)
    n = (count + LANES - 1) // LANES * LANES
    while n > LANES:
        half = (n // LANES + 1) // 2 * LANES
        for j in range(n - half):
            y[j] = _F(y[j] + y[j + half])
        n = half
    return sum_of_64(y)


@inner
def _row_sums(S, y, column):
    wide()
    for r in range(S.shape[0]):
        for j in range(S.shape[1]):
            y[j] = S[r, j]
        column[r] = _row_sum(y, S.shape[1])


@inner
def _arguments(S, column, plans, settings):
    """What the exponential is taken of."""
    wide()
    how, c, x = settings[SUBTRACT], settings[WAITING], S.reshape(-1)
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
    if settings[TIMES_LOG2_E] != 0:
        for i in range(x.size):
            x[i] = _F(x[i] * LOG2_E)
    put_all(x, plans[ARGUMENT])


@inner
def _cast(x, plans, settings):
    wide()
    if settings[QUANTIZED] != 0:
        c = settings[QUANTUM]
        put_times(x, c, plans[WEIGHTS])
        for i in range(x.size):
            x[i] = _F(x[i] / c)
    else:
        put_all(x, plans[WEIGHTS])


@inner
def _weigh_in_full(S, column, y, high, how):
    wide()
    plans, settings = how
    x = S.reshape(-1)
    _arguments(S, column, plans, settings)
    powers(x, settings[BASE_2] != 0, high)
    put_all(x, plans[EXP])
    if settings[AFTER] == 0:
        _row_sums(S, y, column)
    _cast(x, plans, settings)
    if settings[AFTER] != 0:
        _row_sums(S, y, column)


def _cast_of(power: Formula) -> Any:
    """P before its cast is what is added up."""

    def formula(s: Lanes, c: Lanes, d: Lanes, *last: Lanes) -> tuple[Lanes, Lanes]:
        p = power(s.times_plus(c, d))
        return dropped_of(p, last[2]), p

    return along_row(formula)


def _narrow_of(power: Formula) -> Any:
    """Both the argument and P are narrow."""

    def formula(s: Lanes, c: Lanes, d: Lanes, *last: Lanes) -> tuple[Lanes, Lanes]:
        p = dropped_of(power(dropped_of(s.times_plus(c, d), last[0])), last[1])
        return p, p

    return along_row(formula)


def _in_one(along: Any) -> Any:
    """The same bits where nothing is high, P is no quantizer's and the sum is that before a cast.

    S - m is the multiply-add of S with 1.
    """

    @inner
    def weigh(S, column, y, how):
        wide()
        plans, settings = how
        argument, exp = last_bit(plans[ARGUMENT]), last_bit(plans[EXP])
        weight = last_bit(plans[WEIGHTS])
        c = _F(1) if settings[SUBTRACT] == PLAIN else settings[WAITING]
        for r in range(S.shape[0]):
            d = _F(-_F(column[r] * c))
            along(S, r, y, (c, d, argument, exp, weight))
            column[r] = _row_sum(y, S.shape[1])

    return weigh


_weigh_cast_2 = _in_one(_cast_of(low_2_of))
_weigh_cast = _in_one(_cast_of(low_of))
_weigh_narrow = _in_one(_narrow_of(low_of))


@inner
def weigh(S, column, y, high, how):
    """Make S into P, and the shifts in `column` into the row sums; `y` is room for a row.

    `high`: some exponent is large. `how`: plans and settings.
    """
    wide()
    plans, settings = how
    for j in range(S.shape[1], y.size):
        y[j] = NEGATIVE_ZERO
    narrow, cast = plans[EXP, 0], plans[WEIGHTS, 0]
    usual = (
        plans[ARGUMENT, 0] == narrow
        and settings[SUBTRACT] != TIMES
        and settings[TIMES_LOG2_E] == settings[QUANTIZED] == 0
        and (settings[AFTER] == 0 or cast == 0)
    )
    base_2 = settings[BASE_2] != 0
    if high or not usual:
        _weigh_in_full(S, column, y, high, how)
    elif narrow == 0 and cast == BY_DROPPING and base_2:
        _weigh_cast_2(S, column, y, how)
    elif narrow == 0 and cast == BY_DROPPING:
        _weigh_cast(S, column, y, how)
    elif narrow == BY_DROPPING and cast == 0 and not base_2:
        _weigh_narrow(S, column, y, how)
    else:
        _weigh_in_full(S, column, y, high, how)
