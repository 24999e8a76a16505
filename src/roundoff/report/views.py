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

__all__ = [
    "FIGURE_METRICS", "interval_view", "metric_views", "missing", "sections", "undrawable",
]  # fmt: skip

FIGURE_METRICS = ("rel_l2", "rmse", "max_abs_err", "ulp_p99", "gain")
MOST_OUTPUTS = 4


def sections(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    """Samples apart by format, device and the like: what belongs into different figures.

    Inputs from files are apart from drawn ones, with which they share no shape or mask.
    """
    axes = [name for name in varied_axes(samples) if name in CELL_AXES]
    both = len({_from_file(sample) for sample in samples}) > 1
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        words = [places(sample.place, axes), "inputs from files" * (both and _from_file(sample))]
        groups.setdefault(", ".join(filter(None, words)), []).append(sample)
    return groups


def _from_file(sample: Sample) -> bool:
    return str(sample.place.get("inputs")).startswith("file:")


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
    views: list[View | None] = []
    for output in (outputs or outputs_of(samples))[:MOST_OUTPUTS]:
        for metric in metrics_of(samples, output, metrics):
            found = [p.estimate(output, metric) for p in points]
            if not any(i.estimate > 0 or is_signed(metric) for i in _finite(found)):
                continue
            label, title = f"{output} {metric}", metric_title(output, metric)
            words = caption(label, found)
            views.append(interval_view(label, title, found, chart, words, is_signed(metric)))
    return [view for view in views if view]


def _finite(found: Sequence[Interval]) -> list[Interval]:
    return [i for i in found if math.isfinite(i.estimate)]


def interval_view(
    label: str, title: str, found: Sequence[Interval | str], chart: Callable[[Scale], Spec],
    caption: str, signed: bool = False,
) -> View | None:  # fmt: skip
    """Estimates with their bounds as one view; None where not one of them can be drawn.

    A text instead of an interval says why there is none, and stands in the table.
    """
    values = [_drawn(i, signed=signed) for i in found]
    if not any(isinstance(v[0], float) for v in values):
        return None
    spec = chart(_y_scale(title, values, signed=signed))
    return View(label, spec, ("value", "low", "high"), values, caption)


def _drawn(found: Interval | str, *, signed: bool) -> list[float | str | None]:
    """Value and bounds as they can be drawn; a bound of 0 or infinity is no bound."""
    if isinstance(found, str):
        return [found, None, None]
    value = _rounded(found.estimate)
    if value is None or (value <= 0 and not signed):
        return [undrawable(found.estimate), None, None]
    low, high = _rounded(found.low), _rounded(found.high)
    if low is None or high is None or (low <= 0 and not signed):
        return [value, None, None]
    return [value, low, high]


def undrawable(value: float) -> str:
    """What stands in a table where a chart has no place for a number; no number itself."""
    return f"exactly {value:g}" if math.isfinite(value) else f"{value}"


def _rounded(value: float) -> float | None:
    return float(f"{value:.4g}") if math.isfinite(value) else None


def _y_scale(title: str, values: Sequence[Sequence[float | str | None]], *, signed: bool) -> Scale:
    """The axis spans the estimates, and their bounds as far as these are near."""
    held = [(v[0], [b for b in v[1:] if isinstance(b, float)])
            for v in values if isinstance(v[0], float)]  # fmt: skip
    middle = [v for v, _ in held]
    if signed:
        reach = 3 * max(map(abs, middle), default=1.0)
        bounds = [b for _, ends in held for b in ends if abs(b) <= reach]
        return linear_scale(title, [0.0, *middle, *bounds])
    near = [b for v, ends in held for b in ends if v and 1 / 4 < b / v < 4]
    return log_scale(title, middle + near)


def missing(found: Sequence[Interval]) -> str:
    """How many points cannot stand on the axis, in words."""
    wrong = sum(not math.isfinite(i.estimate) for i in found)
    zero = sum(i.estimate == 0 for i in found)
    words = [f"{wrong} points are NaN or infinite"] * bool(wrong) + [f"{zero} are 0"] * bool(zero)
    return f" Not drawn: {' and '.join(words)}." if words else ""
