"""Noise or bias: whether errors cancel over many elements, or pull all of them one way.

Errors within one head, row or tile share a cause (one maximum, one row sum), so a standard
error that takes elements for independent is many times too small. All standard errors here
are taken over clusters, such as heads, and unknown (NaN) where only one cluster was seen.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from roundoff.errors import UsageError
from roundoff.metrics.elementwise import aligned
from roundoff.metrics.intervals import Interval
from roundoff.metrics.student_t import t_quantile

__all__ = ["ClusterSums", "Estimate", "cluster_sums", "gain", "mean_signed_err", "sign_bias"]


@dataclass(frozen=True)
class Estimate:
    """A value, its standard error (NaN: unknown) and the number of clusters behind them."""

    value: float
    se: float
    clusters: int

    @property
    def z(self) -> float:
        """How many standard errors the value is away from 0; NaN where the error is unknown.

        0/0 is 0: nothing was seen, and nothing varied.

        >>> Estimate(-0.5, 0.1, clusters=8).z
        -5.0
        """
        if self.se == 0:
            return math.copysign(math.inf, self.value) if self.value else 0.0
        return self.value / self.se

    def interval(self, confidence: float = 0.95) -> Interval:
        """Return value -+ t * se, with Student's t for clusters - 1 degrees of freedom.

        Infinite where the standard error is unknown.

        >>> Estimate(1.0, 0.5, clusters=1).interval().low
        -inf
        """
        if self.clusters < 2:
            return Interval(self.value, -math.inf, math.inf, self.clusters)
        reach = t_quantile((1 + confidence) / 2, self.clusters - 1) * self.se
        return Interval(self.value, self.value - reach, self.value + reach, self.clusters)


@dataclass(frozen=True, eq=False)
class ClusterSums:
    """Sums over each cluster's elements, from which every measure of bias follows.

    Each field is a float64 tensor [clusters]: the number of elements, and the sums of e,
    sign(g)*e, e*g, g*g and e*e. They are all that is needed to pool several cells: `merge`
    puts clusters side by side, `collapse` makes one cluster of a whole cell, which is right
    where cells (seeds) rather than heads are independent.
    """

    n: Tensor
    e: Tensor
    sign_e: Tensor
    eg: Tensor
    gg: Tensor
    ee: Tensor

    @property
    def clusters(self) -> int:
        """The number of clusters."""
        return self.n.numel()

    def merge(self, *others: ClusterSums) -> ClusterSums:
        """Return the clusters of all, side by side.

        >>> a = cluster_sums(torch.ones(2, 3), torch.ones(2, 3), cluster_dims=1)
        >>> a.merge(a, a.collapse()).clusters
        5
        """
        every = (self, *others)
        return ClusterSums(
            *(torch.cat(column) for column in zip(*map(_columns, every), strict=True))
        )

    def collapse(self) -> ClusterSums:
        """Return all clusters as a single one."""
        return ClusterSums(*(column.sum(0, keepdim=True) for column in _columns(self)))

    def gain(self) -> Estimate:
        """Return <e, g> / <g, g>: x is (1 + gain) times golden, as far as it is a multiple of it.

        Negative where the candidate shrinks. NaN where golden is all zero.
        """
        return _ratio_of_sums(self.eg, self.gg)

    def sign_bias(self) -> Estimate:
        """Return the mean of sign(g)*e: how far errors point away from zero, in units of x."""
        return _ratio_of_sums(self.sign_e, self.n)

    def mean_signed_err(self) -> Estimate:
        """Return the mean of e, which cancels where golden takes both signs."""
        return _ratio_of_sums(self.e, self.n)

    def rmse(self) -> float:
        """Return the root mean square error over all clusters; NaN for no elements."""
        return (self.ee.sum() / self.n.sum()).sqrt().item()


def _columns(sums: ClusterSums) -> Iterable[Tensor]:
    return sums.n, sums.e, sums.sign_e, sums.eg, sums.gg, sums.ee


def _ratio_of_sums(a: Tensor, b: Tensor) -> Estimate:
    """Return sum(a) / sum(b) over clusters with the linearised standard error; a, b: [clusters].

    With R the ratio, a cluster's influence is a_c - R b_c, and these sum to zero, so the
    variance is C/(C-1) * sum (a_c - R b_c)^2 / (sum b)^2 (Cochran, Sampling Techniques, 6.4).
    """
    # A cluster of b = 0 says nothing about R. If it counted, one more would make a standard
    # error of 0 out of a single cluster that does speak.
    told = b != 0
    a, b = a[told], b[told]
    clusters, total = b.numel(), b.sum().item()
    if clusters == 0:
        return Estimate(math.nan, math.nan, 0)
    value = a.sum().item() / total
    if clusters == 1:
        return Estimate(value, math.nan, 1)
    spread = (a - value * b).square().sum().item() * clusters / (clusters - 1)
    return Estimate(value, math.sqrt(spread) / total, clusters)


def cluster_sums(golden: Tensor, x: Tensor, *, cluster_dims: int) -> ClusterSums:
    """Return the sums over each cluster.

    The leading `cluster_dims` dims number the clusters: 2 for [batch, heads, length, dim],
    1 for [rows, n], 0 for a single cluster, whose standard errors are then unknown. An
    infinity that both sides share counts as an exact zero; a NaN makes its cluster NaN.

    >>> cluster_sums(torch.ones(2, 3), torch.full((2, 3), 1.5), cluster_dims=1).e
    tensor([1.5000, 1.5000], dtype=torch.float64)
    """
    count = cluster_count(golden.shape, cluster_dims)
    g, _, e = (
        t.reshape(count, -1) if t.numel() else t.new_empty(count, 0) for t in aligned(golden, x)
    )
    n = torch.full((count,), g.shape[1], dtype=torch.float64, device=g.device)
    products = (e, g.sign() * e, e * g, g * g, e * e)
    return ClusterSums(n, *(p.sum(1) for p in products))


def cluster_count(shape: tuple[int, ...], cluster_dims: int) -> int:
    """Return how many clusters a tensor of this shape has, or raise `UsageError`."""
    if not 0 <= cluster_dims <= len(shape):
        raise UsageError(
            f"cluster_dims is {cluster_dims}, but the tensor has {len(shape)} dims; "
            "give the number of leading dims that number the clusters (0: a single cluster)"
        )
    return math.prod(shape[:cluster_dims])


def gain(golden: Tensor, x: Tensor, *, cluster_dims: int = 1) -> Estimate:
    """Return <e, g> / <g, g> with its standard error over clusters; see `ClusterSums.gain`.

    NaN where golden is all zero, and where either side holds a NaN; an unmatched infinity
    makes it infinite or NaN.

    >>> g = torch.tensor([[1.0, -2.0], [3.0, -4.0]])
    >>> gain(g, 0.75 * g)
    Estimate(value=-0.25, se=0.0, clusters=2)
    """
    return cluster_sums(golden, x, cluster_dims=cluster_dims).gain()


def sign_bias(golden: Tensor, x: Tensor, *, cluster_dims: int = 1) -> Estimate:
    """Return the mean of sign(g)*e with its standard error over clusters; sign(0) is 0.

    >>> g = torch.tensor([[1.0, -2.0], [3.0, -4.0]])
    >>> sign_bias(g, 0.75 * g).value
    -0.625
    """
    return cluster_sums(golden, x, cluster_dims=cluster_dims).sign_bias()


def mean_signed_err(golden: Tensor, x: Tensor, *, cluster_dims: int = 1) -> Estimate:
    """Return the mean of e with its standard error over clusters.

    >>> g = torch.tensor([[1.0, -1.0], [3.0, -3.0]])
    >>> mean_signed_err(g, 0.75 * g).value
    0.0
    """
    return cluster_sums(golden, x, cluster_dims=cluster_dims).mean_signed_err()
