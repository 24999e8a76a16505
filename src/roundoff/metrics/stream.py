"""All sums, counts and maxima behind a `Deviation`, gathered in one pass over blocks.

The blocks are small enough to stay in a core's cache, which makes the pass several times
faster than the plain definitions in `elementwise`, and bounds the float64 memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from roundoff.formats import Format
from roundoff.metrics.bias import ClusterSums, cluster_count
from roundoff.metrics.blocks import Block, blocks
from roundoff.metrics.elementwise import (
    aligned,
    inf_count,
    mismatches,
    nan_count,
    nonfinite_new,
    require_alike,
    zero_shared,
)
from roundoff.metrics.ulp import TopValues, above_1, in_ulps

__all__ = ["AgainstBaseline", "Gathered", "Worst", "gather", "gather_baseline"]

Sum = Literal["e", "sign_e", "eg", "gg", "ee", "abs_e", "abs_g", "xx", "xg", "ulp", "above"]
SUMS: tuple[Sum, ...] = get_args(Sum)

# Elements in a block: half a megabyte of float64 on a CPU, which stays in the cache; on a
# GPU a block must be large against the cost of starting a kernel.
CPU_BLOCK = 1 << 16
GPU_BLOCK = 1 << 23


@dataclass
class Worst:
    """The largest |e| so far and its row-major position; the first NaN beats everything."""

    value: float = 0.0
    position: int | None = None

    def add(self, abs_e: Tensor, offset: int) -> None:
        """Take in a block of |e|, of which `offset` is the first element's position."""
        value = abs_e.max().item()
        if math.isnan(self.value) or value <= self.value:
            return
        self.value, self.position = value, offset + int(abs_e.argmax())


@dataclass
class Gathered:
    """What one pass over golden and the measured tensor leaves behind."""

    n: int
    sums: dict[Sum, Tensor]  # [clusters] each
    top: TopValues
    worst: Worst = field(default_factory=Worst)
    nans: int = 0
    infs: int = 0
    nonfinite_new: int = 0

    def add(self, block: Block, gye: tuple[Tensor, Tensor, Tensor], format: Format) -> Tensor:
        """Take in golden, measured and error of a block; return its sums: [sum, cluster]."""
        g, y, e = gye
        abs_e = e.abs()
        ulps = in_ulps(g, abs_e, format)
        self.worst.add(abs_e, block.offset)
        self.top.add(ulps.flatten())
        terms = (e, g.sign() * e, e * g, g * g, e * e, abs_e, g.abs(), y * y, y * g)
        over = above_1(ulps)
        return torch.stack([t.sum(1, dtype=torch.float64) for t in (*terms, ulps, over)])

    def count_nonfinite(self, g: Tensor, y: Tensor) -> None:
        """Count the NaNs and infinities of a block of the measured tensor."""
        self.nans += nan_count(y)
        self.infs += inf_count(y)
        self.nonfinite_new += nonfinite_new(g, y)

    def total(self, name: Sum) -> float:
        """Return one sum over all clusters."""
        return self.sums[name].sum().item()

    def cluster_sums(self) -> ClusterSums:
        """Return the sums that measure bias, cluster by cluster, on the CPU."""
        s = {name: column.cpu().clone() for name, column in self.sums.items()}
        each = self.n // s["e"].numel() if self.n else 0
        count = torch.full_like(s["e"], each)
        return ClusterSums(count, s["e"], s["sign_e"], s["eg"], s["gg"], s["ee"])


@dataclass(frozen=True)
class AgainstBaseline:
    """What a baseline adds: the size of its own errors, and how often the candidate differs."""

    rmse: float
    max_abs_err: float
    mismatch_rate: float


def gather(
    golden: Tensor, x: Tensor, format: Format, cluster_dims: int, *, rest: Tensor | None = None
) -> Gathered:
    """Return every sum of `Gathered` for x against golden + rest, ulps taken in `format`."""
    require_alike(golden, x)
    golden, x = golden.detach(), x.detach()
    count, n = cluster_count(golden.shape, cluster_dims), golden.numel()
    table = torch.zeros(len(SUMS), count, dtype=torch.float64, device=golden.device)
    result = Gathered(n, dict(zip(SUMS, table, strict=True)), TopValues(n))
    for block in _blocks(golden, count):
        # [clusters in this block, elements of each]; a view of `table` is what `sums` holds.
        g, y = (block.take(t).to(torch.float64) for t in (golden, x))
        e = y - g if rest is None else (y - g) - block.take(rest)
        if not math.isfinite(e.sum().item()):
            result.count_nonfinite(g, y)
            g, y, e = zero_shared(g, y, e)
        table[:, block.clusters] += result.add(block, (g, y, e), format)
    return result


def gather_baseline(
    golden: Tensor, baseline: Tensor, candidate: Tensor, *, rest: Tensor | None = None
) -> AgainstBaseline:
    """Return the errors of the baseline, and the share of elements in which candidate differs."""
    require_alike(golden, baseline)
    golden, baseline, candidate = golden.detach(), baseline.detach(), candidate.detach()
    worst, squares, differing, n = Worst(), 0.0, 0, golden.numel()
    for block in _blocks(golden):
        g, b, c = (block.take(t).to(torch.float64) for t in (golden, baseline, candidate))
        e = aligned(g, b)[2]
        if rest is not None:
            e = e - block.take(rest)
        worst.add(e.abs(), block.offset)
        squares += e.square().sum().item()
        differing += int(mismatches(b, c).sum())
    if not n:
        return AgainstBaseline(math.nan, math.nan, math.nan)
    return AgainstBaseline(math.sqrt(squares / n), worst.value, differing / n)


def _blocks(golden: Tensor, clusters: int = 1) -> Iterator[Block]:
    limit = CPU_BLOCK if golden.device.type == "cpu" else GPU_BLOCK
    return blocks(golden.shape, limit, clusters)
