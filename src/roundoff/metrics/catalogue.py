"""What each metric of a `Deviation` means: one row a field, in the order of the fields.

Free of torch, so that `roundoff list metrics` answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from roundoff.registry import Registry

__all__ = ["METRICS", "Metric"]


@dataclass(frozen=True)
class Metric:
    """What a metric says, its unit, and which direction is better.

    `better` is "zero" for what has a sign, and None for what only describes. `unit` is
    "output" for the units of the output itself, and "" for a pure number.
    """

    name: str
    meaning: str
    unit: Literal["", "output", "ulp", "dB", "elements", "clusters", "index"]
    better: Literal["smaller", "larger", "zero"] | None


METRICS: Registry[Metric] = Registry("metric")

for row in (
    Metric("max_abs_err", "largest error of any element", "output", "smaller"),
    Metric("max_abs_err_index", "where the largest error is", "index", None),
    Metric("mean_abs_err", "mean size of the error", "output", "smaller"),
    Metric("rmse", "root of the mean squared error", "output", "smaller"),
    Metric("rel_l2", "length of the error over the length of golden", "", "smaller"),
    Metric("rel_l1", "sum of the errors' sizes over that of golden", "", "smaller"),
    Metric("cosine", "cosine of the angle to golden; blind to size", "", "larger"),
    Metric("sqnr_db", "signal to noise ratio, -20 log10(rel_l2)", "dB", "larger"),
    Metric("ulp_mean", "mean error in steps of the output format at golden", "ulp", "smaller"),
    Metric("ulp_p99", "error in ulps that 99 % of the elements do not exceed", "ulp", "smaller"),
    Metric("ulp_share_above_1", "share of elements not within one ulp", "", "smaller"),
    Metric("mismatch_rate", "share of elements not bit for bit the baseline's", "", "smaller"),
    Metric("err_ratio", "rmse over the baseline's rmse", "", "smaller"),
    Metric("max_err_ratio", "largest error over the baseline's largest error", "", "smaller"),
    Metric("nan_count", "elements that are NaN", "elements", "smaller"),
    Metric("inf_count", "elements that are infinite, rightly or not", "elements", None),
    Metric("nonfinite_new", "elements not finite where golden is", "elements", "smaller"),
    Metric("gain", "<e,g>/<g,g>: shrinks (negative) or stretches", "", "zero"),
    Metric("gain_se", "standard error of gain over clusters", "", None),
    Metric("sign_bias", "mean of sign(g)*e: errors point away from zero", "output", "zero"),
    Metric("sign_bias_se", "standard error of sign_bias over clusters", "output", None),
    Metric("mean_signed_err", "mean error; cancels over both signs", "output", "zero"),
    Metric("mean_signed_err_se", "standard error of mean_signed_err", "output", None),
    Metric("n", "elements compared", "elements", None),
    Metric("clusters", "independent groups behind the standard errors", "clusters", None),
):
    METRICS.add(row.name, row)
