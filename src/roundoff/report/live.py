"""What a monitor saw, against the step: attention held to golden, and norms of tensors.

A line is a kernel where several were watched in training, else a layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from roundoff.metrics.intervals import Interval
from roundoff.report.charts import line_chart
from roundoff.report.figure import Figure, Names, Scale, Spec, View, linear_scale, show
from roundoff.report.rows import number
from roundoff.report.views import interval_view

__all__ = ["live_figures"]

Row = Mapping[str, Any]
Points = dict[tuple[str, int], list[Row]]

ATTENTION = {
    "rmse": "rmse of the output", "ratio": "rmse over the recipe's",
    "ulp": "mean error (ulp)", "dq_ratio": "rmse of dQ over the recipe's",
    "entropy": "entropy of P (nats)", "logit_max": "largest logit",
}  # fmt: skip
TENSORS = {"norm": "norm", "amax": "largest size"}
MOST_LINES = 12


def live_figures(rows: Iterable[Row]) -> list[Figure]:
    """Figures of all that was watched in a run; none where nothing was."""
    seen = [
        (row, reading)
        for row in rows if row.get("status") == "ok"
        for reading in row.get("live", ())
    ]  # fmt: skip
    attention = _points(
        (_line_of_attention(row, reading), reading)
        for row, reading in seen if reading["of"] == "attention"
    )  # fmt: skip
    pooled = _points((f"{r['of']} {r['name']}", r) for _, r in seen if r.get("pooled"))
    found = [
        _figure("live-attention", "Attention while the model trains", attention, ATTENTION),
        _figure("live-tensors", "Tensors while the model trains", pooled, TENSORS),
    ]
    return [figure for figure in found if figure is not None]


def _line_of_attention(row: Row, reading: Row) -> str:
    watched = row.get("watched")
    return str(watched["attention"] if watched else reading["name"])


def _points(readings: Iterable[tuple[str, Row]]) -> Points:
    """Readings by line and step."""
    found: Points = {}
    for line, reading in readings:
        found.setdefault((line, reading["step"]), []).append(reading)
    return found


def _figure(id: str, title: str, points: Points, metrics: Mapping[str, str]) -> Figure | None:
    lines = list(dict.fromkeys(line for line, _ in points))
    names = Names(lines[:MOST_LINES])
    places = [place for place in sorted(points) if place[0] in names.candidates]
    rows: list[dict[str, Any]] = [
        {"candidate": names[line], "panel": "", "x": step, "dash": "solid",
         "seeds": len(points[line, step])}
        for line, step in places
    ]  # fmt: skip
    steps = [step for _, step in places]

    def chart(y: Scale) -> Spec:
        x = linear_scale("step", steps)
        return line_chart(x, y, names=names, present=names.present(rows), panels=[""])

    views: list[View | None] = []
    for metric, what in metrics.items():
        values = [_spread([number(r.get(metric)) for r in points[place]]) for place in places]
        caption = _caption(what, rows, values, left_out=len(lines) - MOST_LINES)
        views.append(interval_view(metric, what, values, chart, caption))
    drawn = [view for view in views if view]
    shown = {"candidate": "what", "x": "step", "seeds": "readings"}
    return Figure(id, title, rows, drawn, shown) if drawn else None


def _spread(values: Sequence[float | None]) -> Interval | str:
    """The median of the readings, from the least to the largest."""
    held = [v for v in values if v is not None]
    if not held:
        return "not read"
    wrong = next((v for v in held if math.isnan(v)), None)
    if wrong is not None:
        return Interval(wrong, wrong, wrong, len(held))
    return Interval(median(held), min(held), max(held), len(held))


def _caption(
    what: str, rows: Sequence[Row], values: Sequence[Interval | str], *, left_out: int
) -> str:
    last = {str(r["candidate"]): v for r, v in zip(rows, values, strict=True)}
    ends = ", ".join(
        f"{name} {show(v.estimate)}" for name, v in last.items() if isinstance(v, Interval)
    )
    words = [
        f"{what[0].upper()}{what[1:]}, against the step.",
        "Lines: median of the readings. Bands: from the least to the largest.",
        f"In the end: {ends}." if ends else "",
        f"{left_out} more lines are in the run and not drawn." if left_out > 0 else "",
    ]
    return " ".join(filter(None, words))
