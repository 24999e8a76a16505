"""The deviation of one output: every metric at once, and the floor that storage itself sets."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from roundoff.formats import Format, get_format, round_to
from roundoff.metrics.bias import ClusterSums
from roundoff.metrics.elementwise import cosine_of, decibels, ratio
from roundoff.metrics.stream import AgainstBaseline, Gathered, gather, gather_baseline

__all__ = ["GOLDEN_MARGIN", "Deviation", "floor", "measure_deviation"]

GOLDEN_MARGIN = 2.0**8
"""How many times finer than the format of what it judges golden must be."""


@dataclass(frozen=True)
class Deviation:
    """The metrics of one output, of which `METRICS` says what each means.

    Errors are in the units of the output; shares and ratios have none. A number may be NaN
    or infinite; docs/metrics.md has the table. None stands for what was not asked: the three
    comparisons with a baseline, if there was none, and the index, if nothing deviates.
    """

    max_abs_err: float
    max_abs_err_index: tuple[int, ...] | None
    mean_abs_err: float
    rmse: float
    rel_l2: float
    rel_l1: float
    cosine: float
    sqnr_db: float
    ulp_mean: float
    ulp_p99: float
    ulp_share_above_1: float
    mismatch_rate: float | None
    err_ratio: float | None
    max_err_ratio: float | None
    nan_count: int
    inf_count: int
    nonfinite_new: int
    gain: float
    gain_se: float
    sign_bias: float
    sign_bias_se: float
    mean_signed_err: float
    mean_signed_err_se: float
    n: int
    clusters: int
    sums: ClusterSums = dataclasses.field(repr=False, compare=False)
    """Sums per cluster, with which several cells can be pooled; not part of the record."""

    def to_record(self) -> dict[str, float | int | list[int] | None]:
        """Return the metrics as plain Python numbers, by name, in the order of `METRICS`.

        NaN and infinities stay floats: writing them as strings is for whoever writes JSON.
        """
        names = [f.name for f in dataclasses.fields(self) if f.name != "sums"]
        record: dict[str, Any] = {name: getattr(self, name) for name in names}
        if self.max_abs_err_index is not None:
            record["max_abs_err_index"] = list(self.max_abs_err_index)
        return record


def measure_deviation(
    golden: Tensor,
    candidate: Tensor,
    *,
    format: str | Format,
    baseline: Tensor | None = None,
    cluster_dims: int = 1,
    golden_rest: Tensor | None = None,
) -> Deviation:
    """Return how far `candidate` lies from golden, and from golden in units of `baseline`.

    All three are real tensors of one shape on one device, of any dtype; the arithmetic is in
    float64, block by block. `format` is the output's, for errors in ulps. The leading
    `cluster_dims` dims number the clusters over which standard errors are taken: 2 for
    [batch, heads, length, dim], 1 for [rows, n], 0 for none. `golden_rest` is what rounding
    golden to float64 left out (float64, of golden's shape): with it, errors of less than a
    float64 ulp can be measured.

    Special values are results and never dropped: a NaN makes the errors NaN, an infinity on
    one side makes them infinite, the same infinity on both sides is an exact element.
    Errors: `UsageError` for unequal shapes or devices, complex tensors, or cluster_dims
    outside 0..dims; `UnknownNameError` for an unknown format.

    >>> import torch
    >>> golden = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> d = measure_deviation(golden, golden * 0.5, format="bf16", baseline=golden * 0.75)
    >>> d.rel_l2, d.gain, d.err_ratio, d.max_abs_err_index
    (0.5, -0.5, 2.0, (1, 1))
    """
    found = gather(golden, candidate, get_format(format), cluster_dims, rest=golden_rest)
    sums = found.cluster_sums()
    sizes = _sizes(found)
    nothing = AgainstBaseline(math.nan, math.nan, math.nan)
    against = nothing
    if baseline is not None:
        against = gather_baseline(golden, baseline, candidate, rest=golden_rest)
    given = baseline is not None
    gain, sign_bias, signed = sums.gain(), sums.sign_bias(), sums.mean_signed_err()
    return Deviation(
        max_abs_err_index=_index(found.worst.position, golden.shape),
        **sizes,
        mismatch_rate=against.mismatch_rate if given else None,
        err_ratio=_over(sizes["rmse"], against.rmse) if given else None,
        max_err_ratio=_over(sizes["max_abs_err"], against.max_abs_err) if given else None,
        nan_count=found.nans,
        inf_count=found.infs,
        nonfinite_new=found.nonfinite_new,
        gain=gain.value,
        gain_se=gain.se,
        sign_bias=sign_bias.value,
        sign_bias_se=sign_bias.se,
        mean_signed_err=signed.value,
        mean_signed_err_se=signed.se,
        n=found.n,
        clusters=sums.clusters,
        sums=sums,
    )


def floor(
    golden: Tensor,
    format: str | Format,
    *,
    cluster_dims: int = 1,
    golden_rest: Tensor | None = None,
) -> Deviation:
    """Return the deviation of golden rounded once to `format`.

    No kernel that stores its output in this format can have a smaller rmse: what a kernel
    shows beyond this is its own. (Except where golden overflows the format: rounding makes
    that infinite, and a kernel that saturates is closer.) `golden_rest` is what rounding golden
    to float64 left out; without it, the floor of float64 would be 0.
    Special values and errors: as `measure_deviation`.

    >>> import torch
    >>> floor(torch.tensor([1.0, 1.00390625]), "bf16").ulp_mean
    0.25
    """
    rounded = round_to(golden.detach(), format)
    return measure_deviation(
        golden, rounded, format=format, cluster_dims=cluster_dims, golden_rest=golden_rest
    )


def _sizes(found: Gathered) -> dict[str, float]:
    """Return the metrics of size; all NaN for no elements, where nothing can be said."""
    n = found.n or math.nan
    e, g, x = (math.sqrt(found.total(name)) for name in ("ee", "gg", "xx"))
    rel_l2 = ratio(e, g) if found.n else math.nan
    return {
        "max_abs_err": found.worst.value if found.n else math.nan,
        "mean_abs_err": found.total("abs_e") / n,
        "rmse": math.sqrt(found.total("ee") / n),
        "rel_l2": rel_l2,
        "rel_l1": ratio(found.total("abs_e"), found.total("abs_g")) if found.n else math.nan,
        "cosine": cosine_of(found.total("xg"), g, x),
        "sqnr_db": decibels(rel_l2),
        "ulp_mean": found.total("ulp") / n,
        "ulp_p99": found.top.smallest(),
        "ulp_share_above_1": found.total("above") / n,
    }


def _index(position: int | None, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    if position is None:
        return None
    return tuple(int(i) for i in np.unravel_index(position, shape))


def _over(candidate: float, baseline: float) -> float:
    """Return candidate over baseline: 0/0 is NaN, since two exact results have no ratio."""
    return math.nan if baseline == 0 == candidate else ratio(candidate, baseline)
