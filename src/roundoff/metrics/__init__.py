"""How far a result lies from golden: size, ulps, bias, and how sure one can be of each.

Pure functions of tensors: golden first, then what is measured. `METRICS` is free of torch;
everything else imports it when it is first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from roundoff.metrics.catalogue import METRICS, Metric
from roundoff.registry import lazily

if TYPE_CHECKING:
    from roundoff.metrics.bias import (
        ClusterSums,
        Estimate,
        cluster_sums,
        gain,
        mean_signed_err,
        sign_bias,
    )
    from roundoff.metrics.deviation import GOLDEN_MARGIN, Deviation, floor, measure_deviation
    from roundoff.metrics.elementwise import (
        cosine,
        inf_count,
        max_abs_err,
        max_abs_err_index,
        mean_abs_err,
        mismatch_rate,
        nan_count,
        nonfinite_new,
        rel_l1,
        rel_l2,
        rmse,
        sqnr_db,
    )
    from roundoff.metrics.intervals import (
        Interval,
        log_t_interval,
        ratio_interval,
        slope_interval,
        t_interval,
    )
    from roundoff.metrics.student_t import t_quantile
    from roundoff.metrics.ulp import ulp_errors, ulp_mean, ulp_p99, ulp_share_above_1

__all__ = [
    "GOLDEN_MARGIN",
    "METRICS",
    "ClusterSums",
    "Deviation",
    "Estimate",
    "Interval",
    "Metric",
    "cluster_sums",
    "cosine",
    "floor",
    "gain",
    "inf_count",
    "log_t_interval",
    "max_abs_err",
    "max_abs_err_index",
    "mean_abs_err",
    "mean_signed_err",
    "measure_deviation",
    "mismatch_rate",
    "nan_count",
    "nonfinite_new",
    "ratio_interval",
    "rel_l1",
    "rel_l2",
    "rmse",
    "sign_bias",
    "slope_interval",
    "sqnr_db",
    "t_interval",
    "t_quantile",
    "ulp_errors",
    "ulp_mean",
    "ulp_p99",
    "ulp_share_above_1",
]

_ROOMS = {
    "bias": "ClusterSums Estimate cluster_sums gain mean_signed_err sign_bias",
    "deviation": "GOLDEN_MARGIN Deviation floor measure_deviation",
    "elementwise": "cosine inf_count max_abs_err max_abs_err_index mean_abs_err mismatch_rate "
    "nan_count nonfinite_new rel_l1 rel_l2 rmse sqnr_db",
    "intervals": "Interval log_t_interval ratio_interval slope_interval t_interval",
    "student_t": "t_quantile",
    "ulp": "ulp_errors ulp_mean ulp_p99 ulp_share_above_1",
}
_PLACES = {name: room for room, names in _ROOMS.items() for name in names.split()}


__getattr__, __dir__ = lazily(__name__, _PLACES, __all__)
