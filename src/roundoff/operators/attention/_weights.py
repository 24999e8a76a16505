"""Golden's exponentials and their row sums in one compiled loop, float64.

Not bit for bit what torch gives: both are within a few ulp, and golden promises no more.
"""
# Types in here are Numba's, which has no stubs.
# pyright: reportUntypedFunctionDecorator=false, reportMissingParameterType=false
# pyright: reportUnknownArgumentType=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownParameterType=false

from __future__ import annotations

import numba

from roundoff.formats._numba import threads
from roundoff.operators._lanes import Lanes, in_place
from roundoff.operators._numba import compiled, compiled_for_threads, inner
from roundoff.operators._vector import sum_of_row, wide

__all__ = ["threads", "weigh", "weigh_together"]

ROWS = 32  # that a thread takes at a time
TO_WHOLE = 1.5 * 2.0**52 + 1023  # added, it leaves a whole number and the exponent's bias
LOWEST = -1021.0  # 2^x is a normal number from here on, and 0 is near enough below
# (2^f - 1) / f at the Chebyshev nodes of +-1/2.
COEFFICIENTS = (
    4.4549605981865186e-10,
    7.072585949269223e-09,
    1.0178062445845774e-07,
    1.321544258792169e-06,
    1.525273382983612e-05,
    0.0001540353044173605,
    0.0013333558146416936,
    0.009618129107606888,
    0.0555041086648216,
    0.24022650695910097,
    0.6931471805599453,
)


def _exp2(x: Lanes) -> Lanes:
    """2^x of x from `LOWEST` to 1023, to about an ulp."""
    shifted = x + TO_WHOLE
    f = x - (shifted - TO_WHOLE)
    q = f.times_plus(COEFFICIENTS[0], COEFFICIENTS[1])
    for coefficient in (*COEFFICIENTS[2:], 1.0):
        q = q.times_plus(f, coefficient)
    return q * (shifted.bits() << 52).number()


def _shifted_exp2(x: Lanes, shift: Lanes) -> Lanes:
    y = x - shift
    return y.compared(">=", LOWEST).choose(_exp2(y), 0.0)


_exp2_all, _shifted_exp2_all = in_place(_exp2), in_place(_shifted_exp2)


@inner
def _weigh(S, shifts, totals):
    wide()
    for r in range(S.shape[0]):
        _shifted_exp2_all(S[r], (shifts[r],))
        totals[r] += sum_of_row(S, r)


@inner
def _weigh_small(S, totals):
    wide()
    for r in range(S.shape[0]):
        _exp2_all(S[r], ())
        totals[r] += sum_of_row(S, r)


@compiled
def weigh(S, shifts, totals):
    """Make S into 2^(S - shift) of its row, and add each row's sum to its total; -inf gives 0.

    With no shifts at all, nothing is taken away, and every element is between +-1000.
    """
    if shifts.size:
        _weigh(S, shifts, totals)
    else:
        _weigh_small(S, totals)


@compiled_for_threads
def weigh_together(S, shifts, totals):
    """The same on several threads."""
    for part in numba.prange((S.shape[0] + ROWS - 1) // ROWS):
        rows = slice(part * ROWS, min((part + 1) * ROWS, S.shape[0]))
        if shifts.size:
            _weigh(S[rows], shifts[rows], totals[rows])
        else:
            _weigh_small(S[rows], totals[rows])
