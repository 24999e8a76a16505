"""The fast CPU twins of `exponentials.py`: one pass, the same bits.

Float32 in and out. An FMA goes through float64 as in the torch version, so that both round
the same way. One thread: the matrix products beside it take the others.
"""
# Types in here are Numba's, which has no stubs.
# pyright: reportUntypedFunctionDecorator=false, reportMissingParameterType=false
# pyright: reportUnknownArgumentType=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownParameterType=false

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from roundoff.operators import exponentials

__all__ = ["TWINS", "fma_rows"]

_F = np.float32
_D = np.float64
LOG2_E, LN_2 = _F(exponentials.LOG2_E), _D(_F(math.log(2)))
LARGEST, SMALLEST = _F(exponentials.LARGEST), _F(exponentials.SMALLEST)
ZERO, INFINITY, LOWEST = _F(0), _F(np.inf), _F(exponentials.LOWEST)
HALF, ONE, TWO = _F(0.5), _F(1), _F(2)
LN_2_HIGH, LN_2_LOW = _D(exponentials.LN_2_HIGH), _D(_F(exponentials.LN_2_LOW))
CUBIC, QUINTIC, SEXTIC = (
    tuple(_D(_F(value)) for value in values)
    for values in (exponentials.CUBIC, exponentials.QUINTIC, exponentials.SEXTIC)
)
OURS, OURS_2 = (
    tuple(_F(value) for value in values) for values in (exponentials.OURS, exponentials.OURS_2)
)
ENDS, ENDS_2 = (tuple(_F(end) for end in e) for e in (exponentials.ENDS, exponentials.ENDS_2))
OUR_HIGH, OUR_LOW = _F(exponentials.LN_2_HIGH), _F(exponentials.LN_2_LOW)
TO_WHOLE = _F(1.5 * 2**23)  # added and taken away again, it leaves the nearest whole number
TO_WHOLE_BITS = TO_WHOLE.view(np.int32)


@numba.njit(nogil=True)
def _fma(a, b, c):
    return _F(_D(a) * _D(b) + _D(c))


@numba.njit(nogil=True)
def _power(n):
    return np.int32(np.int32(np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)


@numba.njit(nogil=True)
def _fexp_u20(x):
    s = ZERO if math.isnan(x) else min(max(x, SMALLEST), LARGEST)
    y = _F(s * LOG2_E)
    f = _F(y - np.floor(y))
    r = _F(CUBIC[0])
    r = _fma(r, f, CUBIC[1])
    r = _fma(r, f, CUBIC[2])
    r = _fma(r, f, CUBIC[3])
    value = np.int32(_fma(_F(y - r), _D(8388608.0), _D(1065353216.0))).view(np.float32)
    value = ZERO if x < SMALLEST else value
    value = INFINITY if x > LARGEST else value
    return x if math.isnan(x) else value


@numba.njit(nogil=True)
def _exp_u20(x):
    s = ZERO if math.isnan(x) else min(max(x, SMALLEST), LARGEST)
    n = np.floor(_fma(s, LOG2_E, HALF))
    r = _fma(n, -LN_2, s)
    p = _F(QUINTIC[0])
    p = _fma(p, r, QUINTIC[1])
    p = _fma(p, r, QUINTIC[2])
    p = _fma(p, r, QUINTIC[3])
    p = _fma(p, r, QUINTIC[4])
    p = _fma(p, r, QUINTIC[5])
    value = _F(_F(p * _power(n - ONE)) * TWO)
    value = ZERO if x < SMALLEST else value
    value = INFINITY if x > LARGEST else value
    return x if math.isnan(x) else value


@numba.njit(nogil=True)
def _sleef_u10(x):
    s = ZERO if math.isnan(x) else min(max(x, LOWEST), LARGEST)
    n = np.rint(_F(s * LOG2_E))
    r = _fma(n, -LN_2_LOW, _fma(n, -LN_2_HIGH, s))
    u = _F(SEXTIC[0])
    u = _fma(u, r, SEXTIC[1])
    u = _fma(u, r, SEXTIC[2])
    u = _fma(u, r, SEXTIC[3])
    u = _fma(u, r, SEXTIC[4])
    u = _fma(u, r, SEXTIC[5])
    u = _F(_fma(_F(r * r), u, r) + ONE)
    half = np.floor(_F(n * HALF))
    value = _F(_F(u * _power(half)) * _power(_F(n - half)))
    value = ZERO if x < LOWEST else value
    value = INFINITY if x > LARGEST else value
    return x if math.isnan(x) else value


@numba.njit(nogil=True)
def _times_power(p, shifted):
    """p * 2^n, where `shifted` is n + TO_WHOLE: n is how far its bits are from TO_WHOLE's."""
    n = np.int32(_F(shifted).view(np.int32) - TO_WHOLE_BITS)
    half = np.int32(n >> np.int32(1))
    return _F(_F(p * _power(half)) * _power(np.int32(n - half)))


@numba.njit(nogil=True)
def exact(x):
    """exp(x), as `exponentials._ours` computes it."""
    s = ENDS[0] if x < ENDS[0] else x
    s = ENDS[1] if s > ENDS[1] else s
    shifted = _F(_F(s * LOG2_E) + TO_WHOLE)
    n = _F(shifted - TO_WHOLE)
    r = _F(_F(s - _F(n * OUR_HIGH)) - _F(n * OUR_LOW))
    q = OURS[0]
    q = _F(_F(q * r) + OURS[1])
    q = _F(_F(q * r) + OURS[2])
    q = _F(_F(q * r) + OURS[3])
    q = _F(_F(q * r) + OURS[4])
    value = _times_power(_F(_F(_F(_F(r * r) * q) + r) + ONE), shifted)
    return x if x != x else value  # noqa: PLR0124


@numba.njit(nogil=True)
def exact_2(x):
    """2^x, as `exponentials._ours_2` computes it."""
    s = ENDS_2[0] if x < ENDS_2[0] else x
    s = ENDS_2[1] if s > ENDS_2[1] else s
    shifted = _F(s + TO_WHOLE)
    f = _F(s - _F(shifted - TO_WHOLE))
    q = OURS_2[0]
    q = _F(_F(q * f) + OURS_2[1])
    q = _F(_F(q * f) + OURS_2[2])
    q = _F(_F(q * f) + OURS_2[3])
    q = _F(_F(q * f) + OURS_2[4])
    q = _F(_F(q * f) + OURS_2[5])
    value = _times_power(_F(_F(f * q) + ONE), shifted)
    return x if x != x else value  # noqa: PLR0124


def _compiled(function: Callable[..., None]) -> Any:
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # no folder to write the cache to: compile in every process
        return numba.njit(nogil=True)(function)


@_compiled
def _fexp_u20_into(x, out):
    for i in range(x.size):
        out[i] = _fexp_u20(x[i])


@_compiled
def _exp_u20_into(x, out):
    for i in range(x.size):
        out[i] = _exp_u20(x[i])


@_compiled
def _sleef_u10_into(x, out):
    for i in range(x.size):
        out[i] = _sleef_u10(x[i])


@_compiled
def _exact_into(x, out):
    for i in range(x.size):
        out[i] = exact(x[i])


@_compiled
def _exact_2_into(x, out):
    for i in range(x.size):
        out[i] = exact_2(x[i])


@_compiled
def _fma_rows_into(a, b, c, out):
    for i in range(a.shape[0]):
        for j in range(a.shape[1]):
            out[i, j] = _fma(a[i, j], b, c[i])


def _elementwise(into: Any) -> Callable[[Tensor], Tensor]:
    def compute(x: Tensor) -> Tensor:
        x = x.contiguous()
        out = torch.empty_like(x)
        into(x.numpy().reshape(-1), out.numpy().reshape(-1))
        return out

    return compute


TWINS: dict[tuple[str, str], Callable[[Tensor], Tensor]] = {
    ("exact", "e"): _elementwise(_exact_into),
    ("exact", "2"): _elementwise(_exact_2_into),
    ("fexp_u20", "e"): _elementwise(_fexp_u20_into),
    ("exp_u20", "e"): _elementwise(_exp_u20_into),
    ("sleef_u10", "e"): _elementwise(_sleef_u10_into),
}


def fma_rows(a: Tensor, b: float, c: Tensor) -> Tensor:
    """a * b + c with one rounding: `a` [..., K], `c` [..., 1] in float32."""
    a, c = a.contiguous(), c.contiguous()
    out = torch.empty_like(a)
    shape = (c.numel(), a.shape[-1])
    _fma_rows_into(a.numpy().reshape(shape), b, c.numpy().reshape(-1), out.numpy().reshape(shape))
    return out
