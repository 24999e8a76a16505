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
from roundoff.operators.attention._tile import (
    AT_ONCE,
    BY_DROPPING,
    IN_FULL,
    OUT,
    PRODUCT,
    dropped,
    put_all,
    take_in,
    take_in_together,
)

__all__ = [
    "add_up",
    "add_up_together",
    "put_sure",
    "take_in",
    "take_in_together",
    "threads",
]

_F, _I = np.float32, np.int32


@inner
def put_sure(x, plan):
    """Like `put_all`, for values among which there may be NaN."""
    wide()
    if plan[0] == BY_DROPPING:
        last = _I(_I(1) << _I(plan[1] & _I(31)))
        for i in range(x.size):
            x[i] = x[i] if x[i] != x[i] else dropped(x[i], last)
    elif plan[0] == IN_FULL:
        put_all(x, plan)


@inner
def _add_up(o, part, factors, first, last, plans):
    wide()
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
def _add_up_rows(o, part, state, at, last, plans):
    """Rows `at[0]` to `at[1]`, some at a time; `last` says whether the tile is first or last."""
    some = max(1, AT_ONCE // max(1, o.shape[1]))
    for begin in range(at[0], at[1], some):
        rows = slice(begin, min(begin + some, at[1]))
        _add_up(o[rows], part[rows], state[2, rows], last[0], last[1], plans)


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
