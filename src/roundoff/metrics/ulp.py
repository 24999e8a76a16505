"""Errors in units in the last place: how many steps of the output format x is away from golden.

A result that was rounded correctly is at most half an ulp away. Half an ulp at golden is
what storing in the format costs; what exceeds it is the kernel's own doing.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from roundoff.formats import Format, ulp
from roundoff.metrics.elementwise import aligned

__all__ = ["TopValues", "p99", "ulp_errors", "ulp_mean", "ulp_p99", "ulp_share_above_1"]


def ulp_errors(golden: Tensor, x: Tensor, format: str | Format) -> Tensor:
    """Return |x - golden| / ulp(golden) for every element, in float64.

    The spacing is taken at golden, in `format`. An exact element is 0 also where golden is
    infinite or beyond the format; inf where only x is infinite; NaN where either side is NaN,
    and where golden is infinite and x is not the same.

    >>> ulp_errors(torch.tensor([1.0, 1.0]), torch.tensor([1.0, 1.0078125]), "bf16")
    tensor([0., 1.], dtype=torch.float64)
    """
    g, _, e = aligned(golden, x)
    return in_ulps(g, e.abs(), format)


def in_ulps(g: Tensor, abs_e: Tensor, format: str | Format) -> Tensor:
    """Return abs_e over the spacing of `format` at g; arguments as `aligned` leaves them."""
    return (abs_e / ulp(g, format)).masked_fill_(abs_e == 0, 0.0)


def ulp_mean(golden: Tensor, x: Tensor, format: str | Format) -> float:
    """Return the mean error in ulps; NaN for no elements or any NaN.

    >>> ulp_mean(torch.tensor([1.0, 1.0]), torch.tensor([1.0, 1.0078125]), "bf16")
    0.5
    """
    return ulp_errors(golden, x, format).mean().item()


def ulp_p99(golden: Tensor, x: Tensor, format: str | Format) -> float:
    """Return the error in ulps that 99 % of the elements do not exceed.

    An order statistic (see `p99`): the error of one of the elements. NaN for no elements or any
    NaN; inf where more than one in a hundred is infinite on one side only.
    Errors: as `ulp_errors`, and `UnknownNameError` for an unknown format.

    >>> golden, x = torch.ones(200), torch.ones(200)
    >>> x[:3] = torch.tensor([1.0078125, 1.015625, 1.5])
    >>> ulp_p99(golden, x, "bf16")
    1.0
    """
    return p99(ulp_errors(golden, x, format))


def ulp_share_above_1(golden: Tensor, x: Tensor, format: str | Format) -> float:
    """Return the share of elements that are not within one ulp; a NaN is not within.

    >>> ulp_share_above_1(torch.ones(2), torch.tensor([1.0078125, 1.5]), "bf16")
    0.5
    """
    return above_1(ulp_errors(golden, x, format)).to(torch.float64).mean().item()


def above_1(ulps: Tensor) -> Tensor:
    """Return where an error is not within one ulp."""
    return ~(ulps <= 1)


def p99(values: Tensor) -> float:
    """Return the smallest of the values that at least 99 % of them do not exceed.

    An order statistic, not interpolated, and exact for any size (torch.quantile stops
    at 16 million). NaN for no values or any NaN.

    >>> p99(torch.arange(1, 201))
    198.0
    """
    top = TopValues(values.numel())
    top.add(values.to(torch.float64).flatten())
    return top.smallest()


class TopValues:
    """The largest 1 % of `n` values, seen block by block: at most n/100 + 1 are held.

    >>> top = TopValues(200)
    >>> for block in torch.arange(1.0, 201.0).split(64):
    ...     top.add(block)
    >>> top.smallest()
    198.0
    """

    def __init__(self, n: int) -> None:
        # The ceil(0.99 n)-th smallest is the (n - ceil(0.99 n) + 1)-th largest.
        self.size = n - -(-99 * n // 100) + 1
        self.n = n
        self._kept: Tensor | None = None
        self._threshold = -math.inf
        self._nan = False

    def add(self, values: Tensor) -> None:
        """Take in a block of values: [m]."""
        # `not <=` rather than `>` lets NaN through, so that it is noticed below.
        fresh = values[~(values <= self._threshold)]
        if not fresh.numel():
            return
        kept = fresh if self._kept is None else torch.cat([self._kept, fresh])
        if kept.numel() > self.size:
            kept = kept.topk(self.size, sorted=False).values
        self._kept = kept
        low = kept.min().item()
        self._nan = self._nan or math.isnan(low)
        if kept.numel() == self.size and not math.isnan(low):
            self._threshold = low

    def smallest(self) -> float:
        """Return the smallest value held, which is the 99th percentile once all n were added."""
        if self._kept is None or self._nan:
            return math.nan
        return self._kept.min().item()
