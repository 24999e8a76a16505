"""The fast CPU twins of `exponentials.py`: one pass, the same bits.

Float32 in and out. One thread: the matrix products beside it take the others.
"""
# Types in here are Numba's, which has no stubs.
# pyright: reportUntypedFunctionDecorator=false, reportMissingParameterType=false
# pyright: reportUnknownArgumentType=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownParameterType=false

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from roundoff.operators import exponentials
from roundoff.operators._lanes import Lanes, scalar
from roundoff.operators._vector import fma, wide

__all__ = [
    "TWINS",
    "compiled",
    "compiled_for_threads",
    "exact",
    "exact_2",
    "fma_rows",
    "inner",
    "low_2_of",
    "low_of",
]

_F = np.float32
LOG2_E, LN_2 = _F(exponentials.LOG2_E), _F(math.log(2))
LARGEST, SMALLEST = _F(exponentials.LARGEST), _F(exponentials.SMALLEST)
ZERO, INFINITY, LOWEST = _F(0), _F(np.inf), _F(exponentials.LOWEST)
HALF, ONE, TWO = _F(0.5), _F(1), _F(2)
LN_2_HIGH, LN_2_LOW = _F(exponentials.LN_2_HIGH), _F(exponentials.LN_2_LOW)
CUBIC, QUINTIC, SEXTIC, OURS, OURS_2 = (
    tuple(_F(value) for value in values)
    for values in (
        exponentials.CUBIC,
        exponentials.QUINTIC,
        exponentials.SEXTIC,
        exponentials.OURS,
        exponentials.OURS_2,
    )
)
ENDS, ENDS_2 = (tuple(_F(end) for end in e) for e in (exponentials.ENDS, exponentials.ENDS_2))
TO_WHOLE = _F(1.5 * 2**23)  # added and taken away again, it leaves the nearest whole number
TO_WHOLE_BITS = int(TO_WHOLE.view(np.int32))
LIFTED, DOWN = _F(1.5 * 2**23 + 64), _F(2.0**-64)


@numba.njit(nogil=True)
def _power(n):
    return np.int32(np.int32(np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)


@numba.njit(nogil=True)
def _fexp_u20(x):
    s = ZERO if math.isnan(x) else min(max(x, SMALLEST), LARGEST)
    y = _F(s * LOG2_E)
    f = _F(y - np.floor(y))
    r = _F(CUBIC[0])
    r = fma(r, f, CUBIC[1])
    r = fma(r, f, CUBIC[2])
    r = fma(r, f, CUBIC[3])
    value = np.int32(fma(_F(y - r), _F(8388608.0), _F(1065353216.0))).view(np.float32)
    value = ZERO if x < SMALLEST else value
    value = INFINITY if x > LARGEST else value
    return x if math.isnan(x) else value


@numba.njit(nogil=True)
def _exp_u20(x):
    s = ZERO if math.isnan(x) else min(max(x, SMALLEST), LARGEST)
    n = np.floor(fma(s, LOG2_E, HALF))
    r = fma(n, -LN_2, s)
    p = _F(QUINTIC[0])
    p = fma(p, r, QUINTIC[1])
    p = fma(p, r, QUINTIC[2])
    p = fma(p, r, QUINTIC[3])
    p = fma(p, r, QUINTIC[4])
    p = fma(p, r, QUINTIC[5])
    value = _F(_F(p * _power(n - ONE)) * TWO)
    value = ZERO if x < SMALLEST else value
    value = INFINITY if x > LARGEST else value
    return x if math.isnan(x) else value


@numba.njit(nogil=True)
def _sleef_u10(x):
    s = ZERO if math.isnan(x) else min(max(x, LOWEST), LARGEST)
    n = np.rint(_F(s * LOG2_E))
    r = fma(n, -LN_2_LOW, fma(n, -LN_2_HIGH, s))
    u = _F(SEXTIC[0])
    u = fma(u, r, SEXTIC[1])
    u = fma(u, r, SEXTIC[2])
    u = fma(u, r, SEXTIC[3])
    u = fma(u, r, SEXTIC[4])
    u = fma(u, r, SEXTIC[5])
    u = _F(fma(_F(r * r), u, r) + ONE)
    half = np.floor(_F(n * HALF))
    value = _F(_F(u * _power(half)) * _power(_F(n - half)))
    value = ZERO if x < LOWEST else value
    value = INFINITY if x > LARGEST else value
    return x if math.isnan(x) else value


# Formulas, of `Lanes`.


def _times_power(p: Lanes, shifted: Lanes) -> Lanes:
    """p * 2^n, where `shifted` is n + TO_WHOLE: n is how far its bits are from TO_WHOLE's."""
    n = shifted.bits() - TO_WHOLE_BITS
    half = n >> 1
    return p * ((half + 127) << 23).number() * ((n - half + 127) << 23).number()


def _reduced(s: Lanes, whole: np.float32) -> tuple[Lanes, Lanes]:
    """exp of what `s` is beyond whole halvings, and their number plus `whole`."""
    shifted = s * LOG2_E + whole
    n = shifted - whole
    r = s - n * LN_2_HIGH - n * LN_2_LOW
    q = r * OURS[0] + OURS[1]
    for coefficient in OURS[2:]:
        q = q * r + coefficient
    return r * r * q + r + ONE, shifted


def _reduced_2(s: Lanes, whole: np.float32) -> tuple[Lanes, Lanes]:
    """2^s likewise."""
    shifted = s + whole
    f = s - (shifted - whole)
    q = f * OURS_2[0] + OURS_2[1]
    for coefficient in OURS_2[2:]:
        q = q * f + coefficient
    return f * q + ONE, shifted


def _between(x: Lanes, ends: tuple[np.float32, ...]) -> Lanes:
    s = x.compared("<", ends[0]).choose(ends[0], x)
    return s.compared(">", ends[1]).choose(ends[1], s)


def _lifted(p: Lanes, shifted: Lanes) -> Lanes:
    """p * 2^n in two steps: n + 64 onto the exponent, which stays normal, and 2^-64."""
    return (p.bits() + (shifted.bits() << 23)).number() * DOWN


def exact_of(x: Lanes) -> Lanes:
    """exp(x), as `exponentials._ours` computes it."""
    p, shifted = _reduced(_between(x, ENDS), TO_WHOLE)
    return x.is_nan().choose(x, _times_power(p, shifted))


def exact_2_of(x: Lanes) -> Lanes:
    """2^x, as `exponentials._ours_2` computes it."""
    p, shifted = _reduced_2(_between(x, ENDS_2), TO_WHOLE)
    return x.is_nan().choose(x, _times_power(p, shifted))


def low_of(x: Lanes) -> Lanes:
    """The same bits as `exact_of` in less time, for x that is no NaN and at most 40."""
    return _lifted(*_reduced(x.compared("<", ENDS[0]).choose(ENDS[0], x), LIFTED))


def low_2_of(x: Lanes) -> Lanes:
    """The same bits as `exact_2_of` in less time, for x that is no NaN and at most 40."""
    return _lifted(*_reduced_2(x.compared("<", ENDS_2[0]).choose(ENDS_2[0], x), LIFTED))


exact, exact_2 = scalar(exact_of), scalar(exact_2_of)


# For what compiled functions call: it counts no references to arrays, since a count is an atomic
# addition, and a tile's dozens of calls would spend a fifth of their time on them. It cannot
# make an array.
inner: Any = numba.njit(nogil=True, _nrt=False)  # pyright: ignore[reportCallIssue]


def compiled(function: Callable[..., None]) -> Any:
    """Numba's, kept on disk where there is a folder to write to."""
    return _kept(function, nogil=True)


def compiled_for_threads(function: Callable[..., None]) -> Any:
    """The same for a function whose `prange` is shared out; call it in `formats._numba.threads`."""
    return _kept(function, nogil=True, parallel=True)


def _kept(function: Callable[..., None], **options: bool) -> Any:
    njit: Any = numba.njit
    try:
        made = njit(cache=True, **options)(function)
    except RuntimeError:  # no folder to write the cache to: compile in every process
        return njit(**options)(function)
    # Numba looks at the function's own file alone, but its loops hold those that it calls.
    file = getattr(getattr(made, "_cache", None), "_cache_file", None)
    if file is not None:
        file._source_stamp = file._source_stamp, _sources()
    return made


@cache
def _sources() -> str:
    """The digest of all that compiled functions are made of: loops, and their constants."""
    room = Path(__file__).parents[1]
    loops = (p for part in ("formats", "operators") for p in (room / part).rglob("_[!_]*.py"))
    digest = hashlib.sha256()
    for file in sorted((*loops, room / "operators" / "exponentials.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


@compiled
def _fexp_u20_into(x, out):
    wide()
    for i in range(x.size):
        out[i] = _fexp_u20(x[i])


@compiled
def _exp_u20_into(x, out):
    wide()
    for i in range(x.size):
        out[i] = _exp_u20(x[i])


@compiled
def _sleef_u10_into(x, out):
    wide()
    for i in range(x.size):
        out[i] = _sleef_u10(x[i])


@compiled
def _exact_into(x, out):
    wide()
    for i in range(x.size):
        out[i] = exact(x[i])


@compiled
def _exact_2_into(x, out):
    wide()
    for i in range(x.size):
        out[i] = exact_2(x[i])


@compiled
def _fma_rows_into(a, b, c, out):
    wide()
    b = _F(b)
    for i in range(a.shape[0]):
        for j in range(a.shape[1]):
            out[i, j] = fma(a[i, j], b, c[i])


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
