"""Error against a numeric axis: one figure for each axis that takes more than two values."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from roundoff.metrics.intervals import Interval
from roundoff.report.charts import line_chart
from roundoff.report.figure import (
    Figure, Names, Scale, View, linear_scale, log_scale, metric_title, order, places, show,
    show_value,
)  # fmt: skip
from roundoff.report.rows import (
    CELL_AXES, Point, Sample, Value, is_signed, metrics_of, number, numeric_axes, outputs_of,
    points_of, varied_axes,
)  # fmt: skip

__all__ = ["FIGURE_METRICS", "line_figures", "metric_views", "missing", "sections"]

FIGURE_METRICS = ("rel_l2", "rmse", "max_abs_err", "ulp_p99", "gain")
LEAST_VALUES = 3
MOST_PANELS = 12
MOST_OUTPUTS = 4
MOST_CANDIDATES = 14


@dataclass(frozen=True, slots=True)
class Series:
    """The points of one candidate along the axis, in one panel."""

    candidate: str
    panel: str
    points: Sequence[Point]


@dataclass(frozen=True, slots=True)
class Along:
    """What a figure of lines is drawn from: the axis, its series, and who stays constant."""

    axis: str
    section: str
    series: Sequence[Series]
    panels: Sequence[str]
    left_out: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])


def sections(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    """Samples apart by format, device and the like: what belongs into different figures."""
    axes = [name for name in varied_axes(samples) if name in CELL_AXES]
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(places(sample.place, axes), []).append(sample)
    return groups


def line_figures(samples: Sequence[Sample], names: Names) -> list[Figure]:
    """The figures of every axis with three values or more; longer axes first."""
    figures: list[Figure] = []
    for section, held in sections(samples).items():
        for axis, values in numeric_axes(held).items():
            if len(values) >= LEAST_VALUES and axis not in CELL_AXES:
                along = _along(held, axis, section)
                if along.series:
                    figures.append(_figure(along, held, names))
    return figures


def _along(samples: Sequence[Sample], axis: str, section: str) -> Along:
    """The series along `axis`: those with enough points, and the constants beside them."""
    points = points_of(samples)
    groups: dict[Hashable, list[Point]] = {}
    for point in points:
        rest = tuple((k, v) for k, v in point.place.items() if k != axis)
        groups.setdefault((point.candidate, rest), []).append(point)
    moving = [g for g in groups.values() if _steps(g, axis) >= LEAST_VALUES]
    movers = {g[0].candidate for g in moving}
    fixed = [
        g for g in groups.values()
        if g[0].candidate not in movers and all(p.place.get(axis) is None for p in g)
    ]  # fmt: skip
    panels = _panels([p for g in moving for p in g], axis)
    series = [
        Series(group[0].candidate, panel, points)
        for panel, where in list(panels.items())[:MOST_PANELS]
        for group, points in [
            *((g, g) for g in moving), *((g, _flat(g, moving, axis)) for g in fixed)
        ]
        if _fits(group[0], where, _free(group[0].candidate, moving + fixed))
    ]  # fmt: skip
    return Along(axis, section, series, list(panels)[:MOST_PANELS], len(panels) - MOST_PANELS)


def _steps(group: Sequence[Point], axis: str) -> int:
    return len({p.place.get(axis) for p in group} - {None})


def _panels(points: Sequence[Point], axis: str) -> dict[str, Mapping[str, Value]]:
    """The panels by name, each with its place; a value "none" for all of a candidate is free."""
    axes = [a for a in varied_axes(points) if a not in (axis, *CELL_AXES)]
    free = {c: _free(c, [points]) for c in {p.candidate for p in points}}
    full = [p for p in points if not set(axes) & free[p.candidate]] or list(points)
    sizes = {a: len({p.place.get(a) for p in full}) for a in axes}
    axes = sorted((a for a in axes if sizes[a] > 1), key=lambda a: sizes[a])
    ranks = {a: {v: i for i, v in enumerate(order(p.place.get(a) for p in full))} for a in axes}
    held = {places(p.place, axes): {a: p.place.get(a) for a in axes} for p in full}
    return dict(sorted(held.items(), key=lambda item: [ranks[a][item[1][a]] for a in axes]))


def _free(candidate: str, groups: Iterable[Sequence[Point]]) -> set[str]:
    """The axes that the candidate does not have: None at each of its points."""
    held = [p for group in groups for p in group if p.candidate == candidate]
    return {a for a in held[0].place if all(p.place.get(a) is None for p in held)}


def _fits(point: Point, where: Mapping[str, Value], free: set[str]) -> bool:
    return all(a in free or point.place.get(a) == v for a, v in where.items())


def _flat(group: Sequence[Point], moving: Sequence[Sequence[Point]], axis: str) -> list[Point]:
    """A candidate without the axis, repeated at every value, so that it is a level line."""
    values = order(p.place.get(axis) for g in moving for p in g)
    return [
        Point(p.candidate, p.baseline, {**p.place, axis: v}, p.samples)
        for p in group for v in values if v is not None
    ]  # fmt: skip


def _figure(along: Along, samples: Sequence[Sample], names: Names) -> Figure:
    kept = _kept(along.series)
    series = [s for s in along.series if s.candidate in kept]
    points: list[tuple[Series, Point]] = []
    for one in series:
        held = [p for p in one.points if p.place.get(along.axis) is not None]
        points += [(one, p) for p in sorted(held, key=lambda p: number(p.place[along.axis]) or 0)]
    rows = [
        {"candidate": names[s.candidate], "kind": s.candidate.partition(":")[0],
         "panel": s.panel, "x": p.place[along.axis], "seeds": len(p.samples)}
        for s, p in points
    ]  # fmt: skip
    x = _x_scale(along.axis, [float(r["x"]) for r in rows])
    present = names.present(rows)

    def chart(y: Scale) -> dict[str, Any]:
        return line_chart(x, y, names=names, present=present, panels=along.panels)

    where = f", {along.section}" if along.section else ""
    views = metric_views(
        samples, [p for _, p in points], chart,
        lambda metric, found: _caption(along, rows, metric, found, hidden=_hidden(along, kept)),
    )  # fmt: skip
    shown = {"candidate": "candidate", "panel": "where", "x": along.axis, "seeds": "seeds"}
    title = f"Error against {along.axis}{where}"
    return Figure(f"error-by-{along.axis}-{along.section}", title, rows, views, shown)


def _kept(series: Sequence[Series]) -> list[str]:
    """The candidates that a figure has room for, the most measured first."""
    counts: dict[str, int] = {}
    for one in series:
        counts[one.candidate] = counts.get(one.candidate, 0) + len(one.points)
    return sorted(counts, key=lambda c: -counts[c])[:MOST_CANDIDATES]


def _hidden(along: Along, kept: Sequence[str]) -> str:
    """What a figure had no room for, in words."""
    candidates = len({s.candidate for s in along.series}) - len(kept)
    words = [f"{candidates} more candidates"] * (candidates > 0)
    words += [f"{along.left_out} more panels"] * (along.left_out > 0)
    return f" Not drawn: {' and '.join(words)}; the store has them." if words else ""


def _x_scale(axis: str, values: Sequence[float]) -> Scale:
    marks = sorted(set(values))
    if marks[0] > 0 and marks[-1] / marks[0] >= 4:
        return log_scale(axis, marks, marks=marks)
    return linear_scale(axis, marks)


def metric_views(
    samples: Sequence[Sample], points: Sequence[Point], chart: Any, caption: Any
) -> list[View]:
    """One view for each output and metric, logarithmic unless the metric has a sign."""
    views: list[View] = []
    for output in outputs_of(samples)[:MOST_OUTPUTS]:
        for metric in metrics_of(samples, output, FIGURE_METRICS):
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
        return linear_scale(title, held + [b for b in bounds if abs(b) <= reach], include=0.0)
    near = [
        b for v in values for b in v[1:] if b is not None and v[0] and 1 / 4 < b / v[0] < 4
    ]  # fmt: skip
    return log_scale(title, held + near)


def _caption(
    along: Along, rows: Sequence[Mapping[str, Any]], metric: str, found: Sequence[Interval],
    *, hidden: str,
) -> str:  # fmt: skip
    """Which line moves most and which least from the first to the last value of the axis."""
    lines: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row, interval in zip(rows, found, strict=True):
        if math.isfinite(interval.estimate):
            key = (str(row["candidate"]), str(row["panel"]))
            lines.setdefault(key, []).append((float(row["x"]), interval.estimate))
    ends = {key: (min(line), max(line)) for key, line in lines.items() if len(line) > 1}
    text = f"{metric} against {along.axis}. {_moves(along.axis, ends, metric)}"
    return f"{text}{missing(found)}{hidden} Bands: 95 % over seeds. Dashed: kernels."


def _moves(
    axis: str, ends: Mapping[tuple[str, str], tuple[tuple[float, float], ...]], metric: str
) -> str:
    positive = {k: e for k, e in ends.items() if e[0][1] > 0 and e[1][1] > 0}
    if is_signed(metric.rpartition(" ")[2]) or not positive:
        return ""
    ranked = sorted(positive, key=lambda k: positive[k][1][1] / positive[k][0][1])
    words: list[str] = []
    for verb, key in (("Most", ranked[-1]), ("least", ranked[0])):
        (x0, y0), (x1, y1) = positive[key]
        where = f" ({key[1]})" if key[1] else ""
        words.append(
            f"{verb} upwards: {key[0]}{where}, x{show(y1 / y0)} from {axis} "
            f"{show_value(x0)} to {show_value(x1)} ({show(y0)} to {show(y1)})"
        )
    return "; ".join(words[: 1 if ranked[0] == ranked[-1] else 2]) + "."


def missing(found: Sequence[Interval]) -> str:
    """How many points cannot stand on the axis, in words."""
    wrong = sum(not math.isfinite(i.estimate) for i in found)
    zero = sum(i.estimate == 0 for i in found)
    words = [f"{wrong} points are NaN or infinite"] * bool(wrong) + [f"{zero} are 0"] * bool(zero)
    return f" Not drawn: {' and '.join(words)}." if words else ""
