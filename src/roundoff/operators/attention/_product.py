"""A tile's product with V (or a gradient's) added to the running sum in compiled loops.

    O, part [R,Dv]    state [5,R]: see `_tile`

O may hold NaN and infinities, which V can bring.
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
from roundoff.operators._vector import wide
from roundoff.operators.attention._places import BY_DROPPING, OUT, PRODUCT
from roundoff.operators.attention._rounded import last_bit, put_sure, surely_dropped
from roundoff.operators.attention._tile import AT_ONCE, take_in, take_in_together

__all__ = [
    "add_up",
    "add_up_together",
    "take_in",
    "take_in_together",
    "threads",
]

_F, _I = np.float32, np.int32


@inner
def _as_is(x, last):  # noqa: ARG001 - in place of a rounding
    return x


def _in_one(rounded):
    """All steps of a row in one loop or two."""

    @inner
    def add_up(o, part, factors, which, product, out):
        wide()
        first, last = which
        # A factor of 1 changes nothing, unless O is in the wider of two formats.
        always = product != out
        for r in range(o.shape[0]):
            if first:
                for i in range(o.shape[1]):
                    o[r, i] = rounded(part[r, i], out)
            else:
                for i in range(o.shape[1]):
                    o[r, i] = rounded(_F(o[r, i] + rounded(part[r, i], product)), out)
            if not last and (always or factors[r] != _F(1)):
                for i in range(o.shape[1]):
                    o[r, i] = rounded(_F(o[r, i] * factors[r]), product)

    return add_up


_add_up_as_is = _in_one(_as_is)
_add_up_dropped = _in_one(surely_dropped)


@inner
def _add_up_in_full(o, part, factors, which, plans):
    wide()
    first, last = which
    x, y = o.reshape(-1), part.reshape(-1)
    if first:
        for i in range(x.size):
            x[i] = y[i]
    else:
        put_sure(y, plans[PRODUCT])
        for i in range(x.size):
            x[i] = _F(x[i] + y[i])
    put_sure(x, plans[OUT])
    if not last:
        for r in range(o.shape[0]):
            factor = factors[r]
            for i in range(o.shape[1]):
                o[r, i] = _F(o[r, i] * factor)
        put_sure(x, plans[PRODUCT])


@inner
def _add_up(o, part, factors, which, plans):
    wide()
    if plans[PRODUCT, 0] == plans[OUT, 0] == 0:
        _add_up_as_is(o, part, factors, which, _I(0), _I(0))
    elif plans[PRODUCT, 0] == plans[OUT, 0] == BY_DROPPING:
        product, out = last_bit(plans[PRODUCT]), last_bit(plans[OUT])
        _add_up_dropped(o, part, factors, which, product, out)
    else:
        _add_up_in_full(o, part, factors, which, plans)


@inner
def _add_up_rows(o, part, state, at, last, plans):
    """Rows `at[0]` to `at[1]`, some at a time; `last` says whether the tile is first or last."""
    some = max(1, AT_ONCE // max(1, o.shape[1]))
    for begin in range(at[0], at[1], some):
        rows = slice(begin, min(begin + some, at[1]))
        _add_up(o[rows], part[rows], state[2, rows], last, plans)


@compiled
def add_up(o, part, state, first, last, plans):
    """Add the product of a tile to O, and take O to the next maximum unless it was the `last`."""
    _add_up_rows(o, part, state, (0, o.shape[0]), (first, last), plans)


@compiled_for_threads
def add_up_together(o, part, state, first, last, plans):
    """The same on several threads."""
    some = max(1, AT_ONCE // max(1, o.shape[1]))
    for part_of in numba.prange((o.shape[0] + some - 1) // some):
        at = part_of * some, min((part_of + 1) * some, o.shape[0])
        _add_up_rows(o, part, state, at, (first, last), plans)
