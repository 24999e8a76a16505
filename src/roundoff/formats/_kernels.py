"""The jitted loops of rounding: one pass, no branches, the same bits as `_torch.py`.

Each mode is a kernel of its own, so that LLVM sees constants and fills whole vectors.
"""
# Types in here are Numba's, which has no stubs.
# pyright: reportUntypedFunctionDecorator=false, reportMissingParameterType=false
# pyright: reportUnknownArgumentType=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownParameterType=false

from __future__ import annotations

from functools import cache
from typing import Any

import numba
import numpy as np

from roundoff.formats._compiled import compiled, compiled_for_threads

__all__ = ["kernel", "nearest_bits"]

_MODES = ("nearest", "nearest-away", "toward-zero", "up", "down", "stochastic")
_NEAREST, _AWAY, _ZERO, _UP, _DOWN, _STOCHASTIC = range(6)
_U = np.uint32

# Numba widens every int32 result to int64, which halves what fits into a vector: hence a cast
# around every operation, and masks that tell LLVM the range of a shift.


@numba.njit(nogil=True)
def _mix(h):
    """Spread every bit over all 32 ("lowbias32", C. Wellons)."""
    h = _U(_U(h ^ _U(h >> _U(16))) * _U(0x7FEB352D))
    h = _U(_U(h ^ _U(h >> _U(15))) * _U(0x846CA68B))
    return _U(h ^ _U(h >> _U(16)))


@numba.njit(nogil=True)
def _draw(index, key):
    """The 32 random bits of an element: a hash of its index and the two halves of the key."""
    h = _mix(_U(_U(index) + key[0]))
    return _mix(_U(_U(h ^ key[1]) + _U(index >> 32)))


@numba.njit(nogil=True)
def _threshold(rem, full, M, Int):
    """`rem / 2**full` in units of 2**-32, rounded down."""
    if M == 23:
        left = _U(_U(max(Int(Int(32) - full), Int(0))) & _U(31))
        right = _U(_U(min(max(Int(full - Int(32)), Int(0)), Int(31))) & _U(31))
        return _U(_U(_U(rem) << left) >> right)
    left = Int(max(Int(Int(32) - full), Int(0)) & Int(63))
    right = Int(min(max(Int(full - Int(32)), Int(0)), Int(63)) & Int(63))
    return (rem << left) >> right


@numba.njit(nogil=True)
def _step(b, index, plan, key, variant, Int):
    """The bits of one rounded element; `_torch.py` explains the steps."""
    drop, reach, tiny, top, positive, negative, infinite, infinity = plan
    mode, signed_zero, M, _ = variant
    a = Int(b & Int(infinity | Int(Int(Int(1) << Int(M)) - Int(1))))
    field = Int(max(Int(a >> Int(M)), Int(1)))
    base = Int(Int(field - Int(1)) << Int(M))
    sig = Int(a - base)
    full = Int(max(drop, Int(reach - field)))
    s = Int(min(full, Int(M + 2)))
    quantum = Int(Int(1) << Int(s & Int(31 if M == 23 else 63)))
    if mode == _NEAREST:
        odd = Int((sig & quantum) != 0)
        bump = Int(max(Int(Int(Int(quantum >> Int(1)) - Int(1)) + odd), Int(0)))
    elif mode == _AWAY:
        bump = Int(quantum >> Int(1))
    elif mode == _UP:
        bump = Int(0) if b < 0 else Int(quantum - Int(1))
    elif mode == _DOWN:
        bump = Int(quantum - Int(1)) if b < 0 else Int(0)
    elif mode == _STOCHASTIC:
        rem = Int(sig & Int(quantum - Int(1)))
        bump = quantum if _draw(index, key) < _threshold(rem, full, M, Int) else Int(0)
    else:
        bump = Int(0)
    kept = Int(Int(sig + bump) & Int(-quantum))
    r = Int(base + kept)
    if mode in (_UP, _DOWN, _STOCHASTIC):
        r = tiny if s == Int(M + 2) else r
    r = Int(0) if kept == 0 else r
    over = positive
    if mode in (_UP, _DOWN):
        over = negative if b < 0 else positive
    r = over if r > top else r
    if mode in (_UP, _DOWN, _ZERO):
        r = infinite if a == infinity else r
    sign = Int(b ^ a)
    if not signed_zero:
        sign = Int(0) if r == 0 else sign
    return b if a > infinity else Int(r | sign)


@numba.njit(nogil=True)
def nearest_bits(b, plan):
    """The bits of a float32 to the nearest number of a format that has -0, ties to even."""
    return _step(b, 0, plan, (_U(0), _U(0)), (_NEAREST, True, 23, False), np.int32)


@cache
def kernel(mode: str, signed_zero: bool, M: int, in_place: bool, parallel: bool) -> Any:
    """Compile one variant: rounds `x` into `out`, or `x` itself (`out` is not looked at)."""
    # Numba's cache on disk knows a function by its constants but not by its options: without
    # `parallel` among them, the serial code would be loaded as the parallel one.
    variant = _MODES.index(mode), signed_zero, M, parallel
    Int = np.int32 if M == 23 else np.int64

    def into(x, out, p, key):
        plan = (p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7])
        halves = (_U(key[0]), _U(key[1]))
        for i in numba.prange(x.size):
            out[i] = _step(x[i], i, plan, halves, variant, Int)

    # With one array LLVM need not fear that x and out overlap, and still uses vectors.
    def itself(x, out, p, key):  # noqa: ARG001 - called like the other
        plan = (p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7])
        halves = (_U(key[0]), _U(key[1]))
        for i in numba.prange(x.size):
            x[i] = _step(x[i], i, plan, halves, variant, Int)

    return (compiled_for_threads if parallel else compiled)(itself if in_place else into)
