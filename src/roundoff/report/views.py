"""What the figures share: sections of a run, one view for each metric, what cannot be drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from roundoff.metrics.intervals import Interval
from roundoff.report.figure import Scale, Spec, View, linear_scale, log_scale, metric_title, places
from roundoff.report.rows import (
    CELL_AXES,
    Point,
    Sample,
    is_signed,
    metrics_of,
    outputs_of,
    varied_axes,
)

__all__ = ["FIGURE_METRICS", "metric_views", "missing", "sections"]

FIGURE_METRICS = ("rel_l2", "rmse", "max_abs_err", "ulp_p99", "gain")
MOST_OUTPUTS = 4


def sections(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    """Samples apart by format, device and the like: what belongs into different figures."""
    axes = [name for name in varied_axes(samples) if name in CELL_AXES]
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(places(sample.place, axes), []).append(sample)
    return groups


def metric_views(
    samples: Sequence[Sample],
    points: Sequence[Point],
    chart: Callable[[Scale], Spec],
    caption: Callable[[str, Sequence[Interval]], str],
    *,
    outputs: Sequence[str] | None = None,
    metrics: Sequence[str] = FIGURE_METRICS,
) -> list[View]:
    """One view for each output and metric, logarithmic unless the metric has a sign.

    `chart` makes the spec for the axis of the metric, `caption` the words for its estimates.
    """
    views: list[View] = []
    for output in (outputs or outputs_of(samples))[:MOST_OUTPUTS]:
        for metric in metrics_of(samples, output, metrics):
            found = [p.estimate(output, metric) for p in points]
            values = [_drawn(i, signed=is_signed(metric)) for i in found]
            if all(v[0] is None for v in values):
                continue
            scale = _y_scale(metric_title(output, metric), metric, values)
            spec = chart(scale)
            label = f"{output} {metric}"
            words = caption(label, found)
            views.append(View(label, spec, ("value", "low", "high"), values, words))
    return views


def _drawn(interval: Interval, *, signed: bool) -> list[float | None]:
    """Value and bounds as they can be drawn; a bound of 0 or infinity is no bound."""
    value = _rounded(interval.estimate)
    if value is None or (value <= 0 and not signed):
        return [None, None, None]
    low, high = _rounded(interval.low), _rounded(interval.high)
    if low is None or high is None or (low <= 0 and not signed):
        return [value, None, None]
    return [value, low, high]


def _rounded(value: float) -> float | None:
    return float(f"{value:.4g}") if math.isfinite(value) else None


def _y_scale(title: str, metric: str, values: Sequence[Sequence[float | None]]) -> Scale:
    """The axis spans the estimates, and their bounds as far as these are near."""
    held = [v[0] for v in values if v[0] is not None]
    if is_signed(metric):
        bounds = [b for v in values for b in v[1:] if b is not None]
        reach = 3 * max((abs(v) for v in held), default=1.0)
        return linear_scale(title, [0.0, *held, *(b for b in bounds if abs(b) <= reach)])
    near = [
        b for v in values for b in v[1:] if b is not None and v[0] and 1 / 4 < b / v[0] < 4
    ]  # fmt: skip
    return log_scale(title, held + near)


def missing(found: Sequence[Interval]) -> str:
    """How many points cannot stand on the axis, in words."""
    wrong = sum(not math.isfinite(i.estimate) for i in found)
    zero = sum(i.estimate == 0 for i in found)
    words = [f"{wrong} points are NaN or infinite"] * bool(wrong) + [f"{zero} are 0"] * bool(zero)
    return f" Not drawn: {' and '.join(words)}." if words else ""
