"""How far one set of weights lies from another: everything that streams, in one pass over blocks.

`WeightDistance` holds sums, counts and maxima that add up over blocks, tensors and shards. The
Wasserstein distance, which needs counts or a second pass, stands in `wasserstein` and its kin.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from roundoff.metrics.blocks import flat_chunks
from roundoff.metrics.elementwise import cosine_of, ratio, require_alike, zero_shared
from roundoff.registry import is_installed

__all__ = ["BITS", "WeightDistance", "gathered", "gathered_by_torch", "made"]

_CHUNK = 1 << 17
"""Elements of which the readable version keeps copies in float64."""


@dataclass(frozen=True, slots=True)
class WeightDistance:
    """What is known of `n` pairs of numbers, a (golden) and b, with e = b - a.

    Sums `ee`, `aa`, `bb`, `ab` of products and `abs_e`, `abs_a` of sizes; the largest |e|; `steps`,
    the sum of distances in numbers of the dtype that both sides share (NaN between two dtypes), and
    the largest; how many pairs differ (0 and -0 do, two NaNs do not), how many have opposite signs,
    and how many numbers of each side are not finite. Where both hold the same infinity, the pair
    counts as two zeros; a NaN or any other infinity makes sums and maxima NaN or infinite.
    """

    n: int = 0
    ee: float = 0.0
    aa: float = 0.0
    bb: float = 0.0
    ab: float = 0.0
    abs_e: float = 0.0
    abs_a: float = 0.0
    steps: float = 0.0
    largest_e: float = 0.0
    largest_steps: float = 0.0
    differing: int = 0
    sign_flips: int = 0
    nonfinite_a: int = 0
    nonfinite_b: int = 0

    def merge(self, other: WeightDistance) -> WeightDistance:
        """Return what is known of the pairs of both.

        >>> one = gathered(torch.zeros(3), torch.ones(3))
        >>> one.merge(one).n, one.merge(one).max_diff
        (6, 1.0)
        """
        ours, theirs = ([getattr(d, name) for name in self.__slots__] for d in (self, other))
        merged: dict[str, Any] = {
            name: _worse(x, y) if name.startswith("largest") else x + y
            for name, x, y in zip(self.__slots__, ours, theirs, strict=True)
        }
        return WeightDistance(**merged)

    @property
    def max_diff(self) -> float:
        """The largest |b - a|; NaN for no elements or any NaN."""
        return self.largest_e if self.n else math.nan

    @property
    def rel_l2(self) -> float:
        """||b - a|| / ||a||: 0 where nothing differs, inf where only a is all zero."""
        return ratio(math.sqrt(self.ee), math.sqrt(self.aa)) if self.n else math.nan

    @property
    def rel_l1(self) -> float:
        """sum |b - a| / sum |a|, likewise."""
        return ratio(self.abs_e, self.abs_a) if self.n else math.nan

    @property
    def cosine(self) -> float:
        """The cosine of the angle between a and b, blind to their sizes; NaN if one is all zero."""
        return cosine_of(self.ab, math.sqrt(self.aa), math.sqrt(self.bb))

    @property
    def ulp_mean(self) -> float:
        """The mean distance in steps of the dtype; NaN between two dtypes and for no elements."""
        return self.steps / self.n if self.n else math.nan

    @property
    def ulp_max(self) -> float:
        """The largest distance in steps of the dtype, likewise."""
        return self.largest_steps if self.n else math.nan


def _worse(x: float, y: float) -> float:
    return math.nan if math.isnan(x) or math.isnan(y) else max(x, y)


def gathered(a: Tensor, b: Tensor) -> WeightDistance:
    """Return what is known of two tensors of one shape, of any real dtypes.

    Integers are compared exactly, and their steps are their differences. Raises `UsageError` for
    two shapes, two devices, and complex numbers.

    >>> found = gathered(torch.tensor([1.0, -2.0]), torch.tensor([1.5, 2.0]))
    >>> found.max_diff, found.sign_flips, found.differing
    (4.0, 1, 2)
    """
    require_alike(a, b)
    a, b = a.detach().flatten(), b.detach().flatten()
    if a.device.type == "cpu" and a.dtype == b.dtype and a.dtype.is_floating_point:
        if is_installed("numba"):
            from roundoff.metrics.weights_numba import gathered_by_numba  # noqa: PLC0415

            found = gathered_by_numba(a, b)
            if found is not None:
                return found
    elif a.device.type == "cpu" and a.dtype in _NARROW and b.dtype in _NARROW:
        found = gathered(a.to(torch.float32), b.to(torch.float32))
        same = not (a.dtype.is_floating_point or b.dtype.is_floating_point)
        steps = (found.abs_e, found.largest_e) if same else (math.nan, math.nan)
        return replace(found, steps=steps[0], largest_steps=steps[1])
    return gathered_by_torch(a, b)


# Whose numbers a float32 holds.
_NARROW = {
    torch.bool, torch.int8, torch.uint8, torch.int16, torch.bfloat16, torch.float16, torch.float32,
}  # fmt: skip


def made(
    n: int, sums: Sequence[float], largest: Sequence[float], counts: Sequence[int]
) -> WeightDistance:
    """Return what was gathered; all in the order of the fields."""
    ee, aa, bb, ab, abs_e, abs_a, steps = sums
    differing, flips, nonfinite_a, nonfinite_b = counts
    return WeightDistance(
        n, ee, aa, bb, ab, abs_e, abs_a, steps, largest[0], largest[1],
        differing, flips, nonfinite_a, nonfinite_b,
    )  # fmt: skip


def gathered_by_torch(a: Tensor, b: Tensor) -> WeightDistance:
    """The readable twin of the compiled loop: flat tensors of one length, on any device."""
    found = WeightDistance()
    for x, y in zip(flat_chunks(a, _CHUNK), flat_chunks(b, _CHUNK), strict=True):
        found = found.merge(_chunk(x, y))
    return found


def _chunk(x: Tensor, y: Tensor) -> WeightDistance:
    if not x.numel():
        return WeightDistance()
    a, b = x.to(torch.float64), y.to(torch.float64)
    e = _difference(x, y, a, b)
    finite = a.isfinite() & b.isfinite()
    steps = torch.where(finite, _steps(x, y, e), e.abs())
    differing = ((a.signbit() != b.signbit()) | (e != 0)) & (finite | (a != b))
    differing &= ~(a.isnan() & b.isnan())
    nonfinite = [int((~t.isfinite()).sum()) for t in (a, b)]
    flips = int((a.sign() * b.sign() < 0).sum())
    steps = steps.masked_fill(a.isinf() & (a == b), 0.0)
    a, b, e = zero_shared(a, b, e)
    sums = [(p * q).sum().item() for p, q in ((e, e), (a, a), (b, b), (a, b))]
    sums += [t.abs().sum().item() for t in (e, a)] + [steps.sum().item()]
    largest = e.abs().max().item(), steps.max().item()
    counts = [int(differing.sum()), flips, *nonfinite]
    return made(x.numel(), sums, largest, counts)


def _difference(x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """b - a in float64; of whole numbers before they are rounded to it."""
    if x.dtype.is_floating_point or y.dtype.is_floating_point:
        return b - a
    wide = torch.uint64 in (x.dtype, y.dtype) or bool(((b - a).abs() >= 2.0**62).any())
    return b - a if wide else (y.to(torch.int64) - x.to(torch.int64)).to(torch.float64)


BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _steps(x: Tensor, y: Tensor, e: Tensor) -> Tensor:
    """How many numbers of the dtype lie between; NaN between two dtypes."""
    if not (x.dtype.is_floating_point or y.dtype.is_floating_point):
        return e.abs()
    if x.dtype != y.dtype:
        return torch.full_like(e, math.nan)
    integers = BITS[x.dtype.itemsize]
    p, q = (t.contiguous().view(integers).to(torch.int64) for t in (x, y))
    mask = torch.iinfo(integers).max
    near = ((p & mask) - (q & mask)).abs().to(torch.float64)
    far = (p & mask).to(torch.float64) + (q & mask).to(torch.float64)
    return torch.where((p < 0) == (q < 0), near, far)
