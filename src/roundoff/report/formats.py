"""Error of each candidate at one place, by format: dots with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from roundoff.metrics.intervals import Interval
from roundoff.report.charts import dot_chart
from roundoff.report.figure import Figure, Names, Scale, order, places, show
from roundoff.report.rows import (
    Point,
    Sample,
    metrics_of,
    number,
    outputs_of,
    points_of,
    varied_axes,
)
from roundoff.report.views import FIGURE_METRICS, metric_views, missing

__all__ = ["format_figures", "reference"]

MOST_ROWS = 40


def format_figures(samples: Sequence[Sample], names: Names) -> list[Figure]:
    """One figure: every candidate at the place that most formats and candidates share."""
    points, where = reference(points_of(samples))
    if not points:
        return []
    axes = [a for a in varied_axes(points) if a != "format"]
    formats = order(p.place.get("format") for p in points)
    output = outputs_of(samples)[0]
    metric = metrics_of(samples, output, FIGURE_METRICS)[0]
    ranked = sorted(points, key=lambda p: _size(p, output, metric))
    labels = list(dict.fromkeys(names[p.candidate] for p in ranked))[:MOST_ROWS]
    points = [p for p in points if names[p.candidate] in labels]
    points.sort(key=lambda p: formats.index(p.place.get("format")))
    rows = [
        {"label": names[p.candidate], "group": str(p.place.get("format")),
         "panel": places(p.place, axes), "seeds": len(p.samples)}
        for p in points
    ]  # fmt: skip
    panels = list(dict.fromkeys(str(r["panel"]) for r in rows))
    tips = {"label": "candidate", "group": "format", "panel": "where"}

    def chart(x: Scale) -> dict[str, Any]:
        more = {"value": x.title, "low": "95 % from", "high": "to", "seeds": "seeds"}
        return dot_chart(
            x, panels=panels, rows=labels, groups=[str(f) for f in formats], tips=tips | more
        )

    def caption(metric: str, found: Sequence[Interval]) -> str:
        held = [
            (i.estimate, f"{r['label']}, {r['group']}")
            for i, r in zip(found, rows, strict=True) if math.isfinite(i.estimate)
        ]  # fmt: skip
        (low, least), (high, most) = min(held), max(held)
        return (
            f"{metric} {where}: from {show(low)} ({least}) to {show(high)} ({most})."
            f"{missing(found)} Lines: 95 % over seeds."
        )

    shown = {"label": "candidate", "group": "format", "panel": "where", "seeds": "seeds"}
    title = "Error by format" if len(formats) > 1 else "Error of each candidate"
    views = metric_views(samples, points, chart, caption)
    return [Figure("error-by-format", title, rows, views, shown)]


def _size(point: Point, output: str, metric: str) -> float:
    """For sorting: the largest first, what is not a number last."""
    value = point.estimate(output, metric).estimate
    return math.inf if math.isnan(value) else -value


def reference(points: Sequence[Point]) -> tuple[list[Point], str]:
    """The points at one value of each numeric axis, chosen to keep formats and candidates.

    A None stands beside any value: it is a candidate without that axis, or its default.
    """
    chosen: dict[str, float] = {}
    held = list(points)
    for axis in varied_axes(held):
        values = [v for v in order(p.place.get(axis) for p in held) if v is not None]
        if axis == "format" or not values or any(number(v) is None for v in values):
            continue
        by_value = {v: [p for p in held if p.place.get(axis) in (v, None)] for v in values}
        best = max(values, key=lambda v: (_cover(by_value[v]), number(v)))
        held = by_value[best]
        chosen[axis] = number(best) or 0.0
    held = _without_doubles(held, list(chosen))
    return held, f"at {places(chosen, chosen)}" if chosen else "over all cells"


def _cover(points: Sequence[Point]) -> tuple[int, int]:
    return len({p.place.get("format") for p in points}), len({p.candidate for p in points})


def _without_doubles(points: Sequence[Point], axes: Sequence[str]) -> list[Point]:
    """Of points that differ only in the chosen axes, the one with a value, not None."""
    best: dict[object, Point] = {}
    for point in points:
        place = {k: v for k, v in point.place.items() if k not in axes}
        key = (point.candidate, tuple(sorted(place.items(), key=lambda item: item[0])))
        bound = sum(point.place.get(a) is not None for a in axes)
        if key not in best or bound > sum(best[key].place.get(a) is not None for a in axes):
            best[key] = Point(point.candidate, "", {**place}, point.samples)
    return list(best.values())
