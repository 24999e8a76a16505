"""Size and bias side by side: how large an error is, and whether it shrinks or stretches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from roundoff.metrics.intervals import Interval
from roundoff.report.charts import bias_chart
from roundoff.report.figure import (
    Figure,
    Names,
    Scale,
    places,
    show,
    symlog_scale,
)  # fmt: skip
from roundoff.report.ratios import main_axis
from roundoff.report.rows import Point, Sample, number, outputs_of, points_of, varied_axes
from roundoff.report.views import metric_views, sections

__all__ = ["bias_figures", "bias_of"]

MOST_POINTS = 120


def bias_of(point: Point, output: str) -> tuple[Interval, float]:
    """The gain over seeds with its interval, and gain over standard error.

    Two seeds or more: the spread over seeds. One: the standard error over clusters that was
    stored, and twice it as the interval.
    """
    gain = point.estimate(output, "gain")
    errors = point.values(output, "gain_se")
    if gain.n == 1 and len(errors) == 1:
        se = errors[0]
        gain = Interval(gain.estimate, gain.estimate - 2 * se, gain.estimate + 2 * se, 1)
        return gain, _over(gain.estimate, se)
    values = point.values(output, "gain")
    if gain.n < 2 or not all(map(math.isfinite, values)):
        return gain, math.nan
    spread = math.fsum((v - gain.estimate) ** 2 for v in values) / (gain.n - 1)
    return gain, _over(gain.estimate, math.sqrt(spread / gain.n))


def _over(gain: float, error: float) -> float:
    return gain / error if error else math.nan


def bias_figures(samples: Sequence[Sample], names: Names) -> list[Figure]:
    """One figure for each format and the like, at the largest value of the main axis."""
    figures: list[Figure] = []
    for section, held in sections(samples).items():
        axis = main_axis(held)
        if axis is None:
            figures += _figure(held, section, "", names)
            continue
        largest = max(v for s in held if (v := number(s.place.get(axis))) is not None)
        there = [s for s in held if s.place.get(axis) in (None, largest)]
        figures += _figure(there, section, places({axis: largest}, [axis]), names)
    return figures


def _figure(samples: Sequence[Sample], section: str, where: str, names: Names) -> list[Figure]:
    output = outputs_of(samples)[0]
    found = [(p, *bias_of(p, output)) for p in points_of(samples)]
    found = [f for f in found if math.isfinite(f[1].estimate)][:MOST_POINTS]
    if len(found) < 2:
        return []
    axes = varied_axes([p for p, _, _ in found])
    panel_axes = [a for a in axes if any(isinstance(p.place.get(a), str) for p, _, _ in found)]
    rows = [
        {"candidate": names[p.candidate], "panel": places(p.place, panel_axes),
         "where": places({a: v for a, v in p.place.items() if v is not None}, axes),
         "gain": _short(gain.estimate), "gain_low": _short(gain.low),
         "gain_high": _short(gain.high), "z": _short(z), "seeds": len(p.samples)}
        for p, gain, z in found
    ]  # fmt: skip
    panels = sorted(dict.fromkeys(str(r["panel"]) for r in rows))
    sizes = [r["gain"] for r in rows] + [r["gain_high"] for r in rows]
    y = symlog_scale("gain (no unit)", [float(v) for v in sizes if v is not None])
    present = names.present(rows)

    def chart(x: Scale) -> dict[str, Any]:
        return bias_chart(x, y, names=names, present=present, panels=panels)

    def caption(metric: str, _: Sequence[Interval]) -> str:
        return _caption(rows, where, metric)

    views = metric_views(
        samples, [p for p, _, _ in found], chart, caption,
        outputs=[output], metrics=("rel_l2", "rmse"),
    )  # fmt: skip
    title = ", ".join(filter(None, ["Size and bias", section, where]))
    shown = {
        "candidate": "candidate", "where": "where", "gain": "gain", "gain_low": "gain from",
        "gain_high": "to", "z": "z", "seeds": "seeds",
    }  # fmt: skip
    return [Figure(f"bias-{section}", title, rows, views, shown)] if views else []


def _short(value: float) -> float | None:
    return float(f"{value:.4g}") if math.isfinite(value) else None


def _caption(rows: Sequence[dict[str, Any]], where: str, metric: str) -> str:
    bounded = [r for r in rows if r["gain_low"] is not None and r["gain_high"] is not None]
    biased = [r for r in bounded if not r["gain_low"] <= 0 <= r["gain_high"]]
    largest = max(biased or rows, key=lambda r: abs(r["gain"]))
    z = f", z {show(largest['z'])}" if largest["z"] is not None else ""
    word = "stretches" if largest["gain"] > 0 else "shrinks"
    most = f"{largest['candidate']} {word} most: gain {show(largest['gain'])}{z}"
    if largest["where"]:
        most += f" ({largest['where']})"
    head = f"{metric} against gain{', ' + where if where else ''}"
    if not biased:
        return f"{head}: no interval of the gain leaves out 0; it may all be noise. {most}."
    share = f"{len(biased)} of {len(bounded)} points"
    return (
        f"{head}: for {share} the interval of the gain leaves out 0: "
        f"these are biased, not only noisy. Of them, {most}."
    )
