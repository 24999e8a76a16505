"""Exponentials as kernels compute them: exact, and the polynomials of vectorised loops.

Each takes x and returns exp(x) in x's dtype: NaN gives NaN, -inf gives 0, +inf gives inf.
Float32 tensors on the CPU take the twins of `_numba.py`, which give the same bits.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from roundoff.registry import Registry, is_installed
from roundoff.sites import Exponential

__all__ = ["EXPONENTIALS", "LOG2_E", "Approximation", "exp2", "exponential", "fma", "fma_rows"]

LOG2_E = 1.4426950408889634
LARGEST, SMALLEST = 88.72283172607422, -87.33654022216797  # ln of the largest and smallest normal
LOWEST = -104.0  # below it SLEEF's exp is 0
LN_2_HIGH, LN_2_LOW = 0.693145751953125, 1.428606765330187045e-06

# Coefficients from the highest power down, as ATen and SLEEF print them. The twins of `_numba.py`
# read them here; Numba's cache looks only at that file, so touch it after a change.
CUBIC = -0.079204240219773236, -0.22433836478672356, 0.30354260500649682, 0.00010703434948458272
QUINTIC = 0.00828929059, 0.0418978221, 0.166676521, 0.499991506, 0.999999701, 1.0
SEXTIC = (
    0.000198527617612853646278381,
    0.00139304355252534151077271,
    0.00833336077630519866943359,
    0.0416664853692054748535156,
    0.166666671633720397949219,
    0.5,
)


@dataclass(frozen=True, slots=True)
class Approximation:
    """A way to compute exp in float32, and its largest relative error."""

    name: str
    doc: str
    relative_error: float
    compute: Callable[[Tensor], Tensor]


EXPONENTIALS: Registry[Approximation] = Registry("exponential")


def fma(a: Tensor, b: Tensor | float, c: Tensor | float) -> Tensor:
    """a * b + c with one rounding, for float32 through float64.

    The float64 sum is itself rounded, so about one result in 2^29 is rounded twice.
    A float64 `a` is multiplied and added in two roundings.

    >>> fma(torch.tensor(1 + 2**-12), torch.tensor(1 + 2**-12), -1.0 - 2**-11).item() == 2**-24
    True
    """
    wide = b.double() if isinstance(b, Tensor) else b
    addend = c.double() if isinstance(c, Tensor) else c
    return (a.double() * wide + addend).to(a.dtype)


def _single(value: float) -> float:
    return torch.tensor(value, dtype=torch.float32).item()


def _power(n: Tensor) -> Tensor:
    """2^n of whole numbers from -126 to 127, built from bits."""
    return ((n.to(torch.int32) + 127) << 23).view(torch.float32)


def _polynomial(x: Tensor, first: float, *others: float) -> Tensor:
    total = torch.full_like(x, _single(first))
    for coefficient in others:
        total = fma(total, x, _single(coefficient))
    return total


def _at_the_ends(x: Tensor, value: Tensor) -> Tensor:
    """Zero below the normal range, infinity above, NaN kept."""
    value = value.masked_fill(x < SMALLEST, 0.0).masked_fill(x > LARGEST, float("inf"))
    return torch.where(x.isnan(), x, value)


def _fexp_u20(x: Tensor) -> Tensor:
    """ATen's `Vectorized<float>::fexp_u20`: the fraction's 2^f by a cubic, built from bits."""
    y = x.clamp(SMALLEST, LARGEST) * _single(LOG2_E)
    f = y - y.floor()
    r = _polynomial(f, *CUBIC)
    bits = fma(y - r, float(2**23), float(127 * 2**23))
    value = bits.nan_to_num(0.0).to(torch.int32).view(torch.float32)
    return _at_the_ends(x, value)


def _exp_u20(x: Tensor) -> Tensor:
    """ATen's `Vectorized<float>::exp_u20`: exp(r) by a polynomial of degree 5, times 2^n."""
    s = x.nan_to_num(0.0).clamp(SMALLEST, LARGEST)
    n = fma(s, _single(LOG2_E), 0.5).floor()
    r = fma(n, -_single(math.log(2)), s)
    p = _polynomial(r, *QUINTIC)
    return _at_the_ends(x, p * _power(n - 1) * 2.0)


def _sleef_u10(x: Tensor) -> Tensor:
    """SLEEF's `Sleef_expf16_u10`: two-part reduction by ln 2, a polynomial of degree 6."""
    s = x.nan_to_num(0.0).clamp(LOWEST, LARGEST)
    n = (s * _single(LOG2_E)).round()
    r = fma(n, -_single(LN_2_LOW), fma(n, -LN_2_HIGH, s))
    u = _polynomial(r, *SEXTIC)
    u = fma(r * r, u, r) + 1.0
    half = (n * 0.5).floor()
    value = u * _power(half) * _power(n - half)
    value = value.masked_fill(x < LOWEST, 0.0).masked_fill(x > LARGEST, float("inf"))
    return torch.where(x.isnan(), x, value)


for _row in (
    Approximation("exact", "torch's exp, within an ulp", 2**-23, torch.exp),
    Approximation("fexp_u20", "ATen's cubic for 16-bit inputs", 1.3e-4, _fexp_u20),
    Approximation("exp_u20", "ATen's polynomial for 32-bit inputs", 20 * 2**-23, _exp_u20),
    Approximation("sleef_u10", "SLEEF's exp, as ATen's vectors use it", 2**-23, _sleef_u10),
):
    EXPONENTIALS.add(_row.name, _row)


def exponential(x: Tensor, how: Exponential) -> Tensor:
    """exp(x) in base e, or 2^x in base 2, with the exact tail of a vectorised loop.

    The polynomials are float32's: a float64 `x` is rounded to float32 for them.
    """
    name = str(how.approximation)
    if name == "exact":
        return torch.exp(x) if how.base == "e" else exp2(x)
    p = _compute(name, x if how.base == "e" else x * math.log(2))
    tail = x.shape[-1] % how.tail if isinstance(how.tail, int) else 0
    if tail:
        p[..., -tail:] = torch.exp(x[..., -tail:])
    return p


def exp2(x: Tensor) -> Tensor:
    """2^x, whose bits do not depend on where in a tensor a value stands.

    Through float64: on a CPU torch's float32 exp2 is off in one value of sixteen by an ulp
    in its vectors, but not in the scalar loop that takes the last few values of a tensor.
    """
    return torch.exp2(x.double()).to(x.dtype)


def _compute(name: str, x: Tensor) -> Tensor:
    single = x.float()
    twins = _twins() if _is_plain(single) else None
    compute = EXPONENTIALS[name].compute if twins is None else twins.TWINS[name]
    return compute(single).to(x.dtype)


def fma_rows(a: Tensor, b: float, c: Tensor) -> Tensor:
    """a * b + c with one rounding, for `a` [..., K], a number and `c` [..., 1]."""
    twins = _twins() if a.dtype == torch.float32 and _is_plain(a) and _is_plain(c) else None
    return fma(a, b, c) if twins is None else twins.fma_rows(a, b, c)


def _is_plain(x: Tensor) -> bool:
    """Whether Numba can read `x`: memory of the CPU, no subclass and no compiler's stand-in."""
    return x.device.type == "cpu" and type(x) is Tensor and not torch.compiler.is_compiling()


@cache
def _twins() -> Any:
    """The module of fast twins; None without Numba, which `roundoff.formats` reports."""
    return importlib.import_module("roundoff.operators._numba") if is_installed("numba") else None
