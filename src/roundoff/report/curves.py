"""What training did to the weights, against the step: distances, and candidates in yardsticks."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Sequence
from typing import Any

from roundoff.metrics.intervals import Interval
from roundoff.report.charts import line_chart
from roundoff.report.figure import (
    Figure,
    Scale,
    Spec,
    View,
    log_scale,
    show,
    show_interval,
)
from roundoff.report.rows import estimate
from roundoff.report.trained import Trained
from roundoff.report.views import interval_view
from roundoff.training.verdict import UNMEASURED, units, values

__all__ = ["distance_figures", "gaps", "typical", "unit_figures"]

Row = dict[str, Any]

DISTANCES = {
    "rel_l2": "rel_l2 (no unit)", "w1": "W1 of all weights (units of a weight)",
    "max_diff": "largest difference (units of a weight)", "1 - cosine": "1 - cosine (no unit)",
    "rel_l1": "rel_l1 (no unit)", "ulp_mean": "mean difference (ulp)",
}  # fmt: skip
"""The distances that have a view, and what their axes say."""
UNITS = ("rel_l2", "w1", "max_diff")


def typical(trained: Trained, arm: str, step: int, metric: str) -> Interval:
    """A distance over repeats: as everywhere in a report, but 0 where all repeats are."""
    return estimate(list(values(trained.lines, arm, step, metric).values()), signed=False)


def distance_figures(trained: Trained, prefix: str) -> list[Figure]:
    """The distance of every arm from the baseline, a view for each metric."""
    names = trained.names
    places = [
        (arm, step) for arm in trained.arms for step in trained.steps
        if values(trained.lines, arm, step, "rel_l2")
    ]  # fmt: skip
    rows: list[Row] = [
        {"candidate": names[arm], "panel": "", "x": step,
         "dash": "solid" if arm in trained.candidates else "dashed",
         "seeds": len(values(trained.lines, arm, step, "rel_l2"))}
        for arm, step in places
    ]  # fmt: skip

    def chart(y: Scale) -> Spec:
        x = _steps_scale(trained)
        return line_chart(x, y, names=names, present=names.present(rows), panels=[""])

    views: list[View | None] = []
    for metric, title in DISTANCES.items():
        found = [typical(trained, arm, step, metric) for arm, step in places]
        caption = _distance_caption(trained, metric, rows, found)
        views.append(interval_view(metric, title, found, chart, caption))
    shown = {"candidate": "arm", "x": "step", "seeds": "repeats"}
    title = "Distance of the weights from the baseline's"
    return [Figure(f"{prefix}-distance", title, rows, [v for v in views if v], shown)]


def _distance_caption(
    trained: Trained, metric: str, rows: Sequence[Row], found: Sequence[Interval]
) -> str:
    if not rows:
        return ""
    last = trained.steps[-1]
    ends = [
        (i.estimate, str(r["candidate"]))
        for r, i in zip(rows, found, strict=True)
        if r["x"] == last and 0 < i.estimate < math.inf
    ]
    order = ", ".join(f"{name} {show(value)}" for value, name in sorted(ends, reverse=True))
    words = [
        f"{metric} against the step, over {trained.repeats} repeats.",
        f"After step {last}: {order}." if order else f"After step {last} none can be drawn.",
        gaps((r["candidate"], r["x"], i.estimate) for r, i in zip(rows, found, strict=True)),
        "Below about 1e-15 it is the rounding of the cosine itself." * (metric == "1 - cosine"),
        "Bands: 95 % over repeats. Dashed: yardsticks.",
    ]
    return " ".join(filter(None, words))


def gaps(points: Iterable[tuple[str, int, float]], *, zero: bool = True) -> str:
    """Whose value (name, step, value) has no place on an axis, where, and why.

    `zero`: the axis is logarithmic.
    """
    logs: dict[str, dict[int, float]] = {}
    for name, step, value in points:
        logs.setdefault(name, {})[step] = value
    words: list[str] = []
    for name, log in logs.items():
        none = [s for s, v in log.items() if zero and v == 0]
        wrong = [s for s, v in log.items() if not math.isfinite(v)]
        for steps, what in ((none, "exactly 0"), (wrong, "NaN or infinite")):
            if steps:
                words.append(f"{name} is {what} {_when(steps, list(log))}")
    return f"Not drawn: {'; '.join(words)}." if words else ""


def _when(steps: Sequence[int], every: Sequence[int]) -> str:
    """Some of all steps in words: a whole, a tail, or one by one."""
    if len(steps) == len(every):
        return "at every step"
    if list(steps) == list(every)[-len(steps) :]:
        return f"from step {steps[0]} on"
    listed = ", ".join(map(str, steps[:5]))
    return f"at step {listed}{', ...' if len(steps) > 5 else ''}"


def unit_figures(trained: Trained, prefix: str) -> list[Figure]:
    """Every candidate in units of every yardstick, one panel a candidate."""
    names = trained.names
    pairs = [(c, y) for c in trained.candidates for y in trained.yardsticks if c != y]
    found = {
        metric: {(u.candidate, u.yardstick, u.step): u for u in units(
            trained.lines, trained.candidates, trained.yardsticks, metric=metric)}
        for metric in UNITS
    }  # fmt: skip
    drawn = {u.candidate for of in found.values() for u in of.values() if u.ratio}
    places = [
        (c, y, step) for c, y in pairs for step in trained.steps
        if c in drawn and all(values(trained.lines, arm, step, "rel_l2") for arm in (c, y))
    ]  # fmt: skip
    rows: list[Row] = [
        {"candidate": names[y], "panel": names[c], "x": step, "dash": "solid",
         "seeds": trained.repeats}
        for c, y, step in places
    ]  # fmt: skip
    panels = list(dict.fromkeys(r["panel"] for r in rows))

    def chart(y: Scale) -> Spec:
        x, y = _steps_scale(trained), log_scale(y.title, [*y.domain, 1.0])
        return line_chart(x, y, names=names, present=names.present(rows), panels=panels, level=1.0)

    views: list[View | None] = []
    for metric in UNITS:
        ratios = [(u := found[metric][place]).ratio or u.why for place in places]
        caption = f"{_unit_caption(trained, metric, rows, ratios)}{_idle(trained, drawn)}"
        views.append(interval_view(metric, f"ratio of {metric}", ratios, chart, caption))
    shown = {"panel": "candidate", "candidate": "in units of", "x": "step"}
    title = "Candidates in units of yardsticks"
    return [Figure(f"{prefix}-units", title, rows, [v for v in views if v], shown)]


def _unit_caption(
    trained: Trained, metric: str, rows: Sequence[Row], ratios: Sequence[Interval | str]
) -> str:
    told: list[str] = []
    reasons: dict[str, dict[int, None]] = {}
    for row, ratio in zip(rows, ratios, strict=True):
        if isinstance(ratio, str):
            why = f"{row['panel']} over {row['candidate']} {ratio}"
            why = why if ratio == UNMEASURED else ratio
            reasons.setdefault(why, {})[row["x"]] = None
        elif row["x"] == trained.steps[-1]:
            told.append(f"{row['panel']} is {show_interval(ratio)} {row['candidate']}")
    lost = [f"{why} {_when(list(steps), trained.steps)}" for why, steps in reasons.items()]
    words = [
        f"{metric} of the candidate over that of the yardstick, against the step.",
        f"After step {trained.steps[-1]}: {'; '.join(told)}." if told else "",
        "Above 1 the candidate moves the weights more than the yardstick does.",
        f"No ratio where {'; '.join(lost)}." if lost else "",
        "Bands: 95 % over repeats.",
    ]
    return " ".join(filter(None, words))


def _idle(trained: Trained, drawn: Container[str]) -> str:
    """The candidates that have no ratio at all."""
    idle = [trained.names[c] for c in trained.candidates if c not in drawn]
    return f" Without any ratio, and not drawn: {', '.join(idle)}." if idle else ""


def _steps_scale(trained: Trained) -> Scale:
    return log_scale("step", trained.steps, marks=trained.steps)
