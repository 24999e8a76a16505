"""Error against a numeric axis: one figure for each axis that takes more than two values."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from roundoff.metrics.intervals import Interval
from roundoff.report.charts import line_chart
from roundoff.report.figure import (
    Figure,
    Names,
    Scale,
    Spec,
    linear_scale,
    log_scale,
    order,
    places,
    show,
    show_value,
)
from roundoff.report.rows import (
    CELL_AXES,
    Point,
    Sample,
    Value,
    is_signed,
    number,
    numeric_axes,
    points_of,
    varied_axes,
)
from roundoff.report.views import metric_views, missing, sections

__all__ = ["line_figures"]

LEAST_VALUES = 3
MOST_PANELS = 12
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
        {"candidate": names[s.candidate],
         "dash": "dashed" if s.candidate.startswith("kernel:") else "solid",
         "panel": s.panel, "x": p.place[along.axis], "seeds": len(p.samples)}
        for s, p in points
    ]  # fmt: skip
    x = _x_scale(along.axis, [number(p.place[along.axis]) or 0.0 for _, p in points])
    present = names.present(rows)

    def chart(y: Scale) -> Spec:
        return line_chart(x, y, names=names, present=present, panels=along.panels)

    where = f", {along.section}" if along.section else ""

    def caption(metric: str, found: Sequence[Interval]) -> str:
        return _caption(along, rows, metric, found, hidden=_hidden(along, kept))

    views = metric_views(samples, [p for _, p in points], chart, caption)
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
    """By which factors the lines that span the whole axis move, with the two extremes."""
    spans = {(e[0][0], e[1][0]) for e in ends.values()}
    if is_signed(metric.rpartition(" ")[2]) or not spans:
        return ""
    start, end = max(spans, key=lambda span: span[1] - span[0])
    full = {k: e for k, e in ends.items() if (e[0][0], e[1][0]) == (start, end) and e[0][1] > 0}
    if not full:
        return ""
    ranked = sorted(full, key=lambda k: full[k][1][1] / full[k][0][1])

    def spell(key: tuple[str, str]) -> str:
        (_, y0), (_, y1) = full[key]
        where = f"{key[0]}{', ' + key[1] if key[1] else ''}"
        return f"{show(y1 / y0)} ({where}: {show(y0)} to {show(y1)})"

    head = f"From {axis} {show_value(start)} to {show_value(end)} it changes by a factor"
    if len(ranked) == 1:
        return f"{head} of {spell(ranked[0])}."
    return f"{head} between {spell(ranked[0])} and {spell(ranked[-1])}."
