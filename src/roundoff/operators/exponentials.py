"""Exponentials as kernels compute them: exact, and the polynomials of vectorised loops.

Each takes x and returns exp(x) or 2^x in x's dtype: NaN gives NaN, -inf gives 0, +inf gives inf.
Float32 tensors on the CPU take the twins of `_numba.py`, which give the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from roundoff.registry import Registry, compiled_loops
from roundoff.sites import Exponential

__all__ = [
    "EXPONENTIALS",
    "LOG2_E",
    "Approximation",
    "exponential",
    "fma",
    "fma_rows",
    "singles",
]

_twins = partial(compiled_loops, "roundoff.operators._numba")

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

# Ours: minimax for (exp(r) - 1 - r) / r^2 on +-ln(2)/2, and for (2^f - 1) / f on +-1/2. Beyond
# the ends, where they are infinity and 0 in float32, both are computed as at the ends.
OURS = (
    0.001381461275741458,
    0.008368710055947304,
    0.04166838899254799,
    0.1666652113199234,
    0.49999994,
)
OURS_2 = (
    0.00015353361959569156,
    0.0013398873852565885,
    0.00961843691766262,
    0.055503323674201965,
    0.24022647738456726,
    0.6931471824645996,
)
ENDS, ENDS_2 = (-104.0, 89.0), (-151.0, 129.0)


@dataclass(frozen=True, slots=True)
class Approximation:
    """A way to compute exp in float32, and its largest relative error.

    `compute_2` is 2^x where that is not exp(x ln 2); `wide` computes float64 as it is, where
    that is not rounded to float32 for a polynomial.
    """

    name: str
    doc: str
    relative_error: float
    compute: Callable[[Tensor], Tensor]
    compute_2: Callable[[Tensor], Tensor] | None = None
    wide: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]] | None = None


EXPONENTIALS: Registry[Approximation] = Registry("exponential")


def fma(a: Tensor, b: Tensor | float, c: Tensor | float) -> Tensor:
    """a * b + c with one rounding, for float32 (and numbers of float32) through float64.

    The float64 sum is itself rounded, but to odd, so that rounding it again does no harm
    (Boldo and Melquiond, 2008). A float64 `a` is multiplied and added in two roundings.

    >>> fma(torch.tensor(1 + 2**-12), torch.tensor(1 + 2**-12), -1.0 - 2**-11).item() == 2**-24
    True
    """
    wide = b.double() if isinstance(b, Tensor) else b
    addend = c.double() if isinstance(c, Tensor) else c
    product = a.double() * wide
    total = product + addend
    return total if a.dtype == torch.float64 else _to_odd(product, addend, total).to(a.dtype)


def _to_odd(a: Tensor, b: Tensor | float, total: Tensor) -> Tensor:
    """a + b of float64 rounded to odd: where `total` is not exact, its last bit is set.

    An even `total` becomes its neighbour on the side of what was left out (Knuth's two-sum).
    """
    later = total - a
    rest = (a - (total - later)) + (b - later)
    bits = total.view(torch.int64)
    step = torch.where((rest > 0) == (total > 0), 1, -1)
    moves = (rest != 0) & rest.isfinite() & (bits & 1 == 0)
    return (bits + torch.where(moves, step, 0)).view(torch.float64)


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


def _horner(x: Tensor, first: float, *others: float) -> Tensor:
    """A polynomial in separate multiplications and additions."""
    total = torch.full_like(x, _single(first))
    for coefficient in others:
        total = total * x + _single(coefficient)
    return total


def _times_power(p: Tensor, n: Tensor) -> Tensor:
    """p * 2^n for p near 1 and n from -151 to 129: rounded once where it underflows."""
    whole = n.nan_to_num(0.0).to(torch.int32)
    half = whole >> 1
    return p * _power(half) * _power(whole - half)


def _ours(x: Tensor) -> Tensor:
    """exp(x): two-part reduction by ln 2, a polynomial of degree 6; within 0.99 ulp."""
    s = x.clamp(*ENDS)
    n = (s * _single(LOG2_E)).round()
    r = (s - n * LN_2_HIGH) - n * _single(LN_2_LOW)
    value = _times_power((r * r * _horner(r, *OURS) + r) + 1.0, n)
    return torch.where(x.isnan(), x, value)


def _ours_2(x: Tensor) -> Tensor:
    """2^x: a polynomial of degree 6 in x less the nearest whole number; within 1.23 ulp."""
    s = x.clamp(*ENDS_2)
    n = s.round()
    f = s - n
    value = _times_power(f * _horner(f, *OURS_2) + 1.0, n)
    return torch.where(x.isnan(), x, value)


def _rounded(x: Tensor) -> Tensor:
    return torch.exp(x.double()).to(x.dtype)


def _rounded_2(x: Tensor) -> Tensor:
    return torch.exp2(x.double()).to(x.dtype)


_LIBRARY = (torch.exp, torch.exp2)
for _row in (
    Approximation(
        "exact", "our polynomials, within 1.23 ulp", 2**-23, _ours, _ours_2, _LIBRARY
    ),
    Approximation(
        "rounded", "rounded once from float64, nearly always", 2**-24 + 2**-52, _rounded,
        _rounded_2, _LIBRARY,
    ),
    Approximation("fexp_u20", "ATen's cubic for 16-bit inputs", 1.3e-4, _fexp_u20),
    Approximation("exp_u20", "ATen's polynomial for 32-bit inputs", 20 * 2**-23, _exp_u20),
    Approximation("sleef_u10", "SLEEF's exp, as ATen's vectors use it", 2**-23, _sleef_u10),
):  # fmt: skip
    EXPONENTIALS.add(_row.name, _row)


EX2 = 0.0770670420720694, 0.22764499113539632, 0.6951167864453953, 1.0  # minimax on 0..1, p(0) = 1


def _cubic_exp2(x: Tensor, unit: float = 1.0) -> Tensor:
    """2^(x unit): a cubic of the fraction, and the whole part added to its exponent bits."""
    s = (x.double() * unit).nan_to_num(0.0).clamp(-127.0, 128.0)
    p = _polynomial((s - s.floor()).float(), *EX2)
    value = (p.view(torch.int32) + (s.floor().to(torch.int32) << 23)).view(torch.float32)
    return torch.where(x.isnan(), x, value)


EXPONENTIALS.add(
    "cubic_exp2",
    Approximation(
        "cubic_exp2", "FlashAttention-4's cubic, with coefficients of ours", 8.8e-5,
        lambda x: _cubic_exp2(x, LOG2_E), _cubic_exp2,
    ),
)  # fmt: skip


def exponential(x: Tensor, how: Exponential) -> Tensor:
    """exp(x) in base e, or 2^x in base 2, with the other tail of a vectorised loop.

    The polynomials are float32's: a float64 `x` is rounded to float32 for them, but not for
    `exact` and `rounded`. A value's bits do not depend on where in a tensor it stands.
    """
    p = _compute(str(how.approximation), how.base, x)
    if how.columns is not None:
        period, some = how.columns
        taken = torch.arange(x.shape[-1], device=x.device) % period >= period - some
        p = torch.where(taken, p, _compute("exact", how.base, x))
    tail = x.shape[-1] % how.tail if isinstance(how.tail, int) else 0
    if tail:
        p[..., -tail:] = singles(x[..., -tail:], how)
    return p


def singles(x: Tensor, how: Exponential) -> Tensor:
    """The same for values that a kernel computes one by one, in the approximation `how.scalar`.

    >>> x = torch.tensor([-1.0, -149.0, -400.0])
    >>> singles(x, Exponential("2"))
    tensor([5.0000e-01, 1.4013e-45, 0.0000e+00])
    """
    return _compute(how.scalar, how.base, x)


def _compute(name: str, base: str, x: Tensor) -> Tensor:
    row = EXPONENTIALS[name]
    if x.dtype == torch.float64 and row.wide is not None:
        return row.wide[base == "2"](x)
    own = base == "2" and row.compute_2 is not None
    compute = row.compute_2 if own else row.compute
    assert compute is not None
    single = (x if own or base == "e" else x * math.log(2)).float()
    twins = _twins() if _is_plain(single) and single.numel() else None
    fast = None if twins is None else twins.TWINS.get((name, "2" if own else "e"))
    return (fast or compute)(single).to(x.dtype)


def fma_rows(a: Tensor, b: float, c: Tensor) -> Tensor:
    """a * b + c with one rounding, for `a` [..., K], a number of `a`'s and `c` [..., 1]."""
    twins = _twins() if a.dtype == torch.float32 and _is_plain(a) and _is_plain(c) else None
    return fma(a, b, c) if twins is None else twins.fma_rows(a, b, c)


def _is_plain(x: Tensor) -> bool:
    """Whether Numba can read `x`: memory of the CPU, no subclass and no compiler's stand-in."""
    return x.device.type == "cpu" and type(x) is Tensor and not torch.compiler.is_compiling()
