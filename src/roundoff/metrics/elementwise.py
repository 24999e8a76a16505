"""How large an error is: the plain definitions, one function each, in float64.

These are the readable versions: each walks over whole tensors. `deviation` computes
all of them in one pass over blocks, and the tests hold the two together.

Common to all: golden `g` first, then the measured `x`, of one shape; e = x - g. Where both
hold the *same* infinity (the lse of a fully masked row), the element counts as an exact
zero on both sides. A NaN on either side, and an infinity on one side only, stay in: they
make the result NaN or infinite, and are never dropped. No elements: NaN, and counts are 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from roundoff.errors import UsageError

__all__ = [
    "aligned",
    "cosine",
    "inf_count",
    "max_abs_err",
    "max_abs_err_index",
    "mean_abs_err",
    "mismatch_rate",
    "mismatches",
    "nan_count",
    "nonfinite_new",
    "ratio",
    "rel_l1",
    "rel_l2",
    "rmse",
    "sqnr_db",
]


def aligned(golden: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return golden, x and the error x - golden in float64, shared infinities set to 0.

    The arguments are not changed, but a result may be the argument itself where it needs
    no conversion. Errors: `UsageError` unless both are real tensors of one shape on one device.

    >>> g, x, e = aligned(torch.tensor([1.0, -torch.inf]), torch.tensor([1.5, -torch.inf]))
    >>> g.tolist(), e.tolist()
    ([1.0, 0.0], [0.5, 0.0])
    """
    require_alike(golden, x)
    g, y = golden.detach().to(torch.float64), x.detach().to(torch.float64)
    e = y - g
    return (g, y, e) if math.isfinite(e.sum().item()) else zero_shared(g, y, e)


def zero_shared(g: Tensor, y: Tensor, e: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the three with 0 wherever g and y are the same infinity."""
    shared = g.isinf() & (g == y)
    return g.masked_fill(shared, 0.0), y.masked_fill(shared, 0.0), e.masked_fill(shared, 0.0)


def require_alike(a: Tensor, b: Tensor) -> None:
    """Raise `UsageError` unless both are real, of one shape, on one device."""
    if a.shape != b.shape:
        raise UsageError(
            f"shapes differ: {tuple(a.shape)} and {tuple(b.shape)}; nothing is broadcast here, "
            "bring both tensors into one shape first"
        )
    if a.device != b.device:
        raise UsageError(f"devices differ: {a.device} and {b.device}; move one to the other")
    if a.is_complex() or b.is_complex():
        raise UsageError("complex tensors have no order; compare torch.view_as_real of both")


def ratio(numerator: float, denominator: float) -> float:
    """Return an error relative to a magnitude, both >= 0: 0/0 is 0 (exact), a/0 is infinite.

    NaN where either is NaN or both are infinite.

    >>> ratio(1.0, 4.0), ratio(0.0, 0.0), ratio(1.0, 0.0)
    (0.25, 0.0, inf)
    """
    if denominator == 0:
        return math.inf if numerator > 0 else numerator
    return numerator / denominator


def max_abs_err(golden: Tensor, x: Tensor) -> float:
    """Return the largest |e|: NaN if any element is NaN, else inf if an infinity is unmatched.

    >>> max_abs_err(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 1.5]))
    0.5
    """
    e = aligned(golden, x)[2].abs()
    return e.max().item() if e.numel() else math.nan


def max_abs_err_index(golden: Tensor, x: Tensor) -> tuple[int, ...] | None:
    """Return where `max_abs_err` is reached: the first NaN if there is one, else the first maximum.

    None where nothing deviates, and for no elements.

    >>> max_abs_err_index(torch.zeros(2, 3), torch.tensor([[0.0, 0, 0], [0, -2, 2]]))
    (1, 1)
    """
    e = aligned(golden, x)[2].abs()
    if not e.numel() or e.max().item() == 0:
        return None
    where = torch.unravel_index(e.argmax(), e.shape)
    return tuple(int(i) for i in where)


def mean_abs_err(golden: Tensor, x: Tensor) -> float:
    """Return the mean of |e|.

    >>> mean_abs_err(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 1.5]))
    0.25
    """
    return aligned(golden, x)[2].abs().mean().item()


def rmse(golden: Tensor, x: Tensor) -> float:
    """Return the root of the mean of e^2; squares overflow for |e| above about 1e154.

    >>> rmse(torch.zeros(4), torch.tensor([1.0, -1, 1, -1]))
    1.0
    """
    return aligned(golden, x)[2].square().mean().sqrt().item()


def rel_l2(golden: Tensor, x: Tensor) -> float:
    """Return ||e|| / ||g||: 0 where nothing deviates, inf where only golden is all zero.

    >>> rel_l2(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5]))
    0.1
    """
    g, _, e = aligned(golden, x)
    return ratio(_length(e), _length(g)) if e.numel() else math.nan


def _length(x: Tensor) -> float:
    return (x * x).sum().sqrt().item()


def rel_l1(golden: Tensor, x: Tensor) -> float:
    """Return sum|e| / sum|g|: 0 where nothing deviates, inf where only golden is all zero.

    >>> rel_l1(torch.tensor([3.0, -1.0]), torch.tensor([3.0, -2.0]))
    0.25
    """
    g, _, e = aligned(golden, x)
    return ratio(e.abs().sum().item(), g.abs().sum().item()) if e.numel() else math.nan


def cosine(golden: Tensor, x: Tensor) -> float:
    """Return the cosine of the angle between g and x, in [-1, 1]; blind to their sizes.

    NaN if either is all zero or holds anything that is not finite. Never judge by it alone:
    an output scaled by 0.5 has cosine 1.

    >>> cosine(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 1.0]))
    1.0
    """
    g, y, _ = aligned(golden, x)
    return cosine_of((g * y).sum().item(), _length(g), _length(y))


def cosine_of(product: float, length: float, other: float) -> float:
    """Return product / (length * other) kept within [-1, 1]; NaN for a length of 0."""
    if length == 0 or other == 0:
        return math.nan
    value = product / length / other
    return value if math.isnan(value) else min(1.0, max(-1.0, value))


def sqnr_db(golden: Tensor, x: Tensor) -> float:
    """Return the signal to noise ratio 10 log10(sum g^2 / sum e^2) in decibels.

    It is -20 log10(rel_l2): inf where nothing deviates, -inf where only golden is all zero.

    >>> round(sqnr_db(torch.tensor([10.0]), torch.tensor([11.0])), 6)
    20.0
    """
    return decibels(rel_l2(golden, x))


def decibels(relative: float) -> float:
    """Return -20 log10(relative); inf for 0, -inf for inf, NaN for NaN."""
    return 0.0 - 20 * math.log10(relative) if relative else math.inf


def mismatches(a: Tensor, b: Tensor) -> Tensor:
    """Return where two tensors differ in value: a bool tensor of their shape.

    Tensors of two dtypes are compared in float64, which holds both exactly. +0 and -0
    differ (a kernel that loses a sign has rounded differently); any NaN equals any NaN.

    >>> zero, nan = torch.tensor([0.0, torch.nan]), torch.tensor([-0.0, torch.nan])
    >>> mismatches(zero, nan).tolist()
    [True, False]
    """
    require_alike(a, b)
    a, b = a.detach().to(torch.float64), b.detach().to(torch.float64)
    differ = a.contiguous().view(torch.int64) != b.contiguous().view(torch.int64)
    return differ & ~(a.isnan() & b.isnan())


def mismatch_rate(a: Tensor, b: Tensor) -> float:
    """Return the share of elements that are not bit for bit the same; see `mismatches`.

    >>> mismatch_rate(torch.tensor([1.0, 2, 3, 4]), torch.tensor([1.0, 2, 3, 5]))
    0.25
    """
    return mismatches(a, b).to(torch.float64).mean().item()


def nan_count(x: Tensor) -> int:
    """Return how many elements of x are NaN.

    >>> nan_count(torch.tensor([1.0, torch.nan]))
    1
    """
    return int(x.to(torch.float64).isnan().sum())


def inf_count(x: Tensor) -> int:
    """Return how many elements of x are infinite, whether or not golden is.

    >>> inf_count(torch.tensor([1.0, -torch.inf, torch.nan]))
    1
    """
    return int(x.to(torch.float64).isinf().sum())


def nonfinite_new(golden: Tensor, x: Tensor) -> int:
    """Return how many elements of x are NaN or infinite where golden is finite.

    >>> inf = torch.inf
    >>> nonfinite_new(torch.tensor([1.0, -inf, 3.0]), torch.tensor([inf, -inf, 3.0]))
    1
    """
    require_alike(golden, x)
    return int((golden.isfinite() & ~x.to(torch.float64).isfinite()).sum())
