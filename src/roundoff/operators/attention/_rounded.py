"""Rounding of a tile's numbers in compiled loops, as `arithmetic.put` does it.

A plan says whether and how, as `fused.plan` writes it down. The usual formats have float32's
exponents, so that dropping bits is all there is to do; the others go through the plan in full.
"""
# Types in here are Numba's, which has no stubs.
# pyright: reportUntypedFunctionDecorator=false, reportMissingParameterType=false
# pyright: reportUnknownArgumentType=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownParameterType=false

from __future__ import annotations

import numpy as np

from roundoff.formats._kernels import nearest_bits
from roundoff.operators._lanes import Lanes, scalar
from roundoff.operators._numba import inner
from roundoff.operators._vector import bits, number, wide
from roundoff.operators.attention._places import BY_DROPPING, IN_FULL

__all__ = [
    "dropped",
    "dropped_of",
    "last_bit",
    "put_all",
    "put_sure",
    "put_times",
    "surely_dropped",
]

_F, _I = np.float32, np.int32
INFINITE = _I(0x7F800000)


@inner
def last_bit(plan):
    """Of a format with float32's exponents; 1 of float32 itself."""
    return _I(_I(1) << _I(plan[1] & _I(31)))


def dropped_of(x: Lanes, last: Lanes) -> Lanes:
    """`x` to the nearest number of a format with float32's exponents; `last` is its last bit."""
    b, half = x.bits(), last >> 1
    up = (b & last).compared("==", 0).choose(half - 1, half)
    return ((b + up) & -last).number()


def _surely_dropped_of(x: Lanes, last: Lanes) -> Lanes:
    """The same where `x` may be NaN, which stays.

    To choose between `x` and a result would make LLVM store only some lanes, which takes AMD's
    CPUs ten times as long.
    """
    b, half, is_nan = x.bits(), last >> 1, x.is_nan()
    up = is_nan.choose(0, (b & last).compared("==", 0).choose(half - 1, half))
    return ((b + up) & is_nan.choose(-1, -last)).number()


dropped, surely_dropped = scalar(dropped_of), scalar(_surely_dropped_of)


@inner
def _in_full(x, plan):
    """`x` rounded as `arithmetic.put` does it: infinities and NaN stay."""
    b = bits(x)
    r = nearest_bits(b, plan)
    return x if _I(b & _I(0x7FFFFFFF)) >= INFINITE else number(r)


@inner
def _integers(plan):
    return plan[1], plan[2], plan[3], plan[4], plan[5], plan[6], plan[7], plan[8]


@inner
def put_all(x, plan):
    """Round all of `x`, among which there is no NaN."""
    wide()
    if plan[0] == BY_DROPPING:
        last = last_bit(plan)
        for i in range(x.size):
            x[i] = dropped(x[i], last)
    elif plan[0] == IN_FULL:
        integers = _integers(plan)
        for i in range(x.size):
            x[i] = _in_full(x[i], integers)


@inner
def put_times(x, c, plan):
    """Round all of `x` times `c`; the usual rounding takes one loop."""
    wide()
    if plan[0] == BY_DROPPING:
        last = last_bit(plan)
        for i in range(x.size):
            x[i] = dropped(_F(x[i] * c), last)
    else:
        for i in range(x.size):
            x[i] = _F(x[i] * c)
        put_all(x, plan)


@inner
def put_sure(x, plan):
    """Like `put_all`, for values among which there may be NaN."""
    wide()
    if plan[0] == BY_DROPPING:
        last = last_bit(plan)
        for i in range(x.size):
            x[i] = surely_dropped(x[i], last)
    elif plan[0] == IN_FULL:
        put_all(x, plan)
