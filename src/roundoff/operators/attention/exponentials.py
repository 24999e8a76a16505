"""Exponentials as kernels compute them: exact, and the polynomials of vectorised loops.

Each takes x and returns exp(x) (or 2^x) in x's dtype; -inf gives 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from roundoff.operators.attention.recipe import Exponential
from roundoff.registry import Registry

__all__ = ["EXPONENTIALS", "Approximation", "exponential", "fma"]

LOG2_E = 1.4426950408889634


@dataclass(frozen=True, slots=True)
class Approximation:
    """A way to compute exp, and the largest relative error that its source states."""

    name: str
    doc: str
    relative_error: float
    natural: Callable[[Tensor], Tensor]


EXPONENTIALS: Registry[Approximation] = Registry("exponential")


def fma(a: Tensor, b: Tensor | float, c: Tensor | float) -> Tensor:
    """a * b + c with one rounding, for float32 through float64.

    The float64 sum is itself rounded, so about one result in 2^29 is rounded twice.
    A float64 `a` is multiplied and added in two roundings.
    """
    wide = b.double() if isinstance(b, Tensor) else b
    addend = c.double() if isinstance(c, Tensor) else c
    return (a.double() * wide + addend).to(a.dtype)


def _single(value: float) -> float:
    return torch.tensor(value, dtype=torch.float32).item()


def _fexp_u20(x: Tensor) -> Tensor:
    """ATen's `Vectorized<float>::fexp_u20`: the fraction's 2^f by a cubic, built from bits."""
    y = x.float() * _single(LOG2_E)
    f = y - y.floor()
    r = torch.full_like(f, _single(-0.079204240219773236))
    for coefficient in (-0.22433836478672356, 0.30354260500649682, 0.00010703434948458272):
        r = fma(r, f, _single(coefficient))
    bits = fma(y - r, float(2**23), float(127 * 2**23))
    # Below this argument the result would be subnormal; the kernel returns 0 there.
    small = x.float() < _single(math.log(2.0**-126))
    value = bits.nan_to_num(0.0, 0.0, 0.0).clamp(0, 2**31 - 256).to(torch.int32)
    return value.view(torch.float32).masked_fill(small, 0.0).where(~x.isnan(), x.float()).to(x.dtype)


EXPONENTIALS.add("exact", Approximation("exact", "torch's exp, within an ulp", 2**-23, torch.exp))
EXPONENTIALS.add(
    "fexp_u20",
    Approximation("fexp_u20", "ATen's cubic for 16-bit inputs", 1.1e-4, _fexp_u20),
)


def exponential(x: Tensor, how: Exponential) -> Tensor:
    """exp(x) in base e, or 2^x in base 2, with the exact tail of a vectorised loop."""
    if how.approximation == "exact":
        return torch.exp(x) if how.base == "e" else torch.exp2(x)
    approximate = EXPONENTIALS[how.approximation].natural
    p = approximate(x if how.base == "e" else x * math.log(2))
    tail = x.shape[-1] % how.tail if how.tail else 0
    if tail:
        p[..., -tail:] = torch.exp(x[..., -tail:])
    return p
