"""Losses and norms of gradients against the step: one thin line an arm, mean over repeats."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from roundoff.report.charts import curve_chart
from roundoff.report.curves import gaps
from roundoff.report.figure import Figure, Scale, View, linear_scale, log_scale
from roundoff.report.trained import BASELINE, Trained
from roundoff.report.views import undrawable
from roundoff.training.verdict import skipped

__all__ = ["loss_figures", "mean_losses"]

Place = tuple[str, int]
"""An arm, and the last step of a part."""

MOST_POINTS = 100
"""Of one curve; more steps than these are averaged in equal parts."""
APART = "distance from the baseline's loss"


def loss_figures(trained: Trained, prefix: str) -> list[Figure]:
    """Loss of all, its distance from the baseline's, and the norm of the gradient."""
    width = math.ceil(int(trained.experiment["steps"]) / MOST_POINTS)
    loss = _logged(trained, "loss")
    base = loss[BASELINE]
    apart = {
        arm: {at: abs(v - base[at]) for at, v in log.items() if at in base}
        for arm, log in loss.items() if arm != BASELINE
    }  # fmt: skip
    means = {
        "loss": _parts(loss, width), APART: _parts(apart, width),
        "norm of the gradient": _parts(_logged(trained, "grad_norm"), width),
    }  # fmt: skip
    places = list(means["loss"])
    rows = [{"candidate": trained.names[arm], "x": step} for arm, step in places]
    views = [
        _view(trained, label, rows, [held.get(place) for place in places], width)
        for label, held in means.items()
    ]
    shown = {"candidate": "arm", "x": "step"}
    return [Figure(f"{prefix}-loss", "Loss", rows, [v for v in views if v], shown)]


def mean_losses(trained: Trained) -> dict[Place, float]:
    """The loss of every arm at every step, mean over repeats."""
    return _parts(_logged(trained, "loss"), 1)


def _logged(trained: Trained, key: str) -> dict[str, dict[tuple[int, int], float]]:
    """What was logged of everyone, by step and repeat."""
    return {
        arm: {
            (at["step"], line["training"]["repeat"]): float(at[key])
            for line in trained.lines
            for at in line["log"].get(arm, [])
        }
        for arm in (BASELINE, *trained.arms)
    }


def _parts(
    logs: Mapping[str, Mapping[tuple[int, int], float]], width: int
) -> dict[Place, float]:  # fmt: skip
    """Means over repeats and over `width` steps; one NaN makes its part NaN."""
    held: dict[Place, list[float]] = {}
    for arm, log in logs.items():
        last = max((step for step, _ in log), default=0)
        for (step, _), value in sorted(log.items()):
            end = min(last, math.ceil(step / width) * width)
            held.setdefault((arm, end), []).append(value)
    return {place: sum(found) / len(found) for place, found in held.items()}


def _view(
    trained: Trained, label: str, rows: Sequence[Mapping[str, Any]],
    found: Sequence[float | None], width: int,
) -> View | None:  # fmt: skip
    known = [
        (str(r["candidate"]), int(r["x"]), v)
        for r, v in zip(rows, found, strict=True)
        if v is not None
    ]
    y = _scale(label, [v for _, _, v in known if math.isfinite(v)])
    values: list[list[float | str | None]] = [[_told(v, y)] for v in found]
    if not any(isinstance(v[0], float) for v in values):
        return None
    names = trained.names
    present = names.present([{"candidate": name} for name, _, _ in known])
    x = linear_scale("step", [0, *(step for _, step, _ in known)])
    over = f"{trained.repeats} repeats{f' and {width} steps' if width > 1 else ''}"
    last = max(step for _, step, _ in known)
    ends = ", ".join(f"{name} {value:.4g}" for name, step, value in known if step == last)
    words = [
        f"{label[0].upper()}{label[1:]} against the step, mean over {over}.",
        f"In the end: {ends}.",
        gaps(known, zero=y.kind == "log"),
        _skips(trained),
    ]
    spec = curve_chart(x, y, names=names, present=present)
    return View(label, spec, ("value",), values, " ".join(filter(None, words)))


def _skips(trained: Trained) -> str:
    """Whose steps loss scaling skipped."""
    counts = {arm: skipped(trained.lines, arm) for arm in (*trained.arms, BASELINE)}
    told = ", ".join(f"{n} of {trained.names[arm]}" for arm, n in counts.items() if n)
    return f"Loss scaling skipped steps: {told}." if told else ""


def _scale(label: str, held: Sequence[float]) -> Scale:
    """Linear for a loss as losses are, logarithmic for what spans decades."""
    title = "|loss - baseline's|" if label == APART else label
    low, high = min(held, default=0.0), max(held, default=1.0)
    if label == APART or (low > 0 and high / low > 30):
        return log_scale(title, held)
    return linear_scale(title, held)


def _told(value: float | None, scale: Scale) -> float | str | None:
    if value is None:
        return None
    if math.isfinite(value) and (value > 0 or scale.kind == "linear"):
        return float(f"{value:.4g}")
    return undrawable(value)
