"""The map of ratios: each candidate's error over its baseline's, at each place of the sweep."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from roundoff.metrics.intervals import Interval
from roundoff.report.charts import ratio_chart
from roundoff.report.figure import Figure, Names, View, order, places, show, show_value
from roundoff.report.rows import (
    CELL_AXES,
    Point,
    Sample,
    number,
    numeric_axes,
    outputs_of,
    points_of,
    varied_axes,
)  # fmt: skip
from roundoff.report.views import sections

__all__ = ["main_axis", "ratio_figures"]

METRICS = {"err_ratio": "rmse", "max_err_ratio": "largest error"}
LEAST_CELLS = 4
MOST_ROWS = 40
MOST_COLUMNS = 16


def main_axis(samples: Sequence[Sample]) -> str | None:
    """The numeric axis that most samples have, and of those the one with most values."""
    axes = {a: v for a, v in numeric_axes(samples).items() if a not in CELL_AXES}

    def rank(axis: str) -> tuple[int, int]:
        have = sum(s.place.get(axis) is not None for s in samples)
        return have, len(axes[axis])

    return max(axes, key=rank, default=None)


def ratio_figures(samples: Sequence[Sample], names: Names) -> list[Figure]:
    """One map for each baseline and format that has enough cells to be worth one."""
    figures: list[Figure] = []
    for section, held in sections(samples).items():
        for baseline in dict.fromkeys(s.baseline for s in held):
            mine = [s for s in held if s.baseline == baseline != s.candidate]
            figures += _figure(mine, f"against {names[baseline]}", section, names)
    return figures


def _figure(samples: Sequence[Sample], what: str, section: str, names: Names) -> list[Figure]:
    points = points_of(samples, with_baseline=True)
    axis = main_axis(samples)
    others = [a for a in varied_axes(points) if a != axis and a not in CELL_AXES]
    panel_axes = [a for a in others if _wordy(points, a)]
    row_axes = [a for a in others if a not in panel_axes]
    columns = order(p.place.get(axis) for p in points)[-MOST_COLUMNS:] if axis else [None]
    points = [p for p in points if axis is None or p.place.get(axis) in columns]
    if len(points) < LEAST_CELLS:
        return []
    points.sort(key=lambda p: (names.domain().index(names[p.candidate]), _sizes(p, row_axes)))
    rows = [
        {"label": _label(names[p.candidate], p, row_axes), "panel": places(p.place, panel_axes),
         "column": show_value(p.place.get(axis)) if axis else "", "seeds": len(p.samples)}
        for p in points
    ]  # fmt: skip
    labels = list(dict.fromkeys(str(r["label"]) for r in rows))[:MOST_ROWS]
    kept = [i for i, r in enumerate(rows) if r["label"] in labels]
    rows, points = [rows[i] for i in kept], [points[i] for i in kept]
    views = _views(points, rows, axis, [show_value(c) for c in columns] if axis else [""])
    title = f"Error {what}, place by place{', ' + section if section else ''}"
    shown = {"label": "candidate", "panel": "where", "column": axis or "", "seeds": "seeds"}
    found = Figure(f"ratio-{what.partition(' ')[2]}-{section}", title, rows, views, shown)
    return [found] if views else []


def _wordy(points: Sequence[Point], axis: str) -> bool:
    values = {p.place.get(axis) for p in points} - {None}
    return any(number(v) is None for v in values)


def _sizes(point: Point, axes: Sequence[str]) -> list[float]:
    return [-1.0 if (v := number(point.place.get(a))) is None else v for a in axes]


def _label(name: str, point: Point, axes: Sequence[str]) -> str:
    """The candidate with those axes that it has: `paper-bf16, tile 16`."""
    return ", ".join(filter(None, [name, places(
        {a: point.place[a] for a in axes if point.place.get(a) is not None}, axes)]))  # fmt: skip


def _views(
    points: Sequence[Point], rows: Sequence[Mapping[str, Any]], axis: str | None,
    columns: Sequence[str],
) -> list[View]:  # fmt: skip
    labels = list(dict.fromkeys(str(r["label"]) for r in rows))
    panels = sorted(dict.fromkeys(str(r["panel"]) for r in rows))
    output = outputs_of([s for p in points for s in p.samples])[0]
    views: list[View] = []
    for metric, word in METRICS.items():
        found = [p.estimate(output, metric) for p in points]
        if not any(_finite(i) for i in found):
            continue
        shades = [math.log2(i.estimate) for i in found if _finite(i)]
        reach = min(6.0, max(1.0, *map(abs, shades)))
        spec = ratio_chart(axis or "", panels=panels, rows=labels, columns=columns, reach=reach)
        values = [_cell(i) for i in found]
        label = f"{output} {word}"
        caption = _caption(word, found, rows, axis or "")
        views.append(View(label, spec, ("value", "low", "high"), values, caption))
    return views


def _finite(interval: Interval) -> bool:
    return 0 < interval.estimate < math.inf


def _cell(interval: Interval) -> list[float | None]:
    if not _finite(interval):
        return [None, None, None]
    ends = (interval.low, interval.high)
    bounds = [float(f"{b:.4g}") if 0 < b < math.inf else None for b in ends]
    return [float(f"{interval.estimate:.4g}"), *bounds]


def _caption(
    word: str, found: Sequence[Interval], rows: Sequence[Mapping[str, Any]], axis: str
) -> str:
    held = [(i.estimate, r) for i, r in zip(found, rows, strict=True) if _finite(i)]
    near = sum(1 / 1.1 <= ratio <= 1.1 for ratio, _ in held)
    least, most = min(held, key=lambda h: h[0]), max(held, key=lambda h: h[0])

    def spell(item: tuple[float, Mapping[str, Any]]) -> str:
        at = [item[1]["label"], item[1]["panel"], f"{axis} {item[1]['column']}" if axis else ""]
        return f"{show(item[0])}x ({', '.join(filter(None, at))})"

    missing = len(found) - len(held)
    lost = f" {missing} cells have no ratio." if missing else ""
    return (
        f"{word} over the baseline's: {near} of {len(held)} cells lie within 10 % of it; "
        f"from {spell(least)} to {spell(most)}.{lost}"
    )
