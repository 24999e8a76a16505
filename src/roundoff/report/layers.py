"""Where the weights moved: a map of tensors, in the order of the model, by arm."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product, takewhile
from typing import Any

from roundoff.report.charts import Shade, heat_map
from roundoff.report.figure import Figure, View, show
from roundoff.report.rows import estimate
from roundoff.report.trained import Trained

__all__ = ["layer_figures", "map_view", "short_tensors"]

METRICS = ("rel_l2", "max_diff", "w1")
MOST_TENSORS = 80
LONGEST = 36
"""Letters of a tensor's name beside the map; the whole name is in its tooltip."""


def layer_figures(trained: Trained, prefix: str) -> list[Figure]:
    """The distance of each tensor: the first metric after every step, the others in the end."""
    tensors = _tensors(trained)
    steps = sorted(trained.steps, reverse=True)
    if not (tensors and steps):
        return []
    kept, left = _kept(trained, tensors, steps[0])
    labels = dict(zip(kept, short_tensors(kept), strict=True))
    names = trained.names
    places = [(tensor, arm) for tensor in kept for arm in trained.arms]
    rows = [
        {"label": labels[tensor], "column": names[arm], "tensor": tensor} for tensor, arm in places
    ]
    lost = f" {left} tensors that moved less are left out." if left else ""
    views: list[View] = []
    for metric, step in [*product(METRICS, steps[:1]), *product(METRICS[:1], steps[1:])]:
        held = _values(trained, step, metric)
        found = [_typical(held.get(place, [])) for place in places]
        if view := map_view(f"{metric} after step {step}", metric, rows, found):
            views.append(replace(view, caption=view.caption + lost))
    shown = {"tensor": "tensor", "column": "arm"}
    return [Figure(f"{prefix}-tensors", "Which tensors moved", rows, views, shown)]


def map_view(
    label: str, metric: str, rows: Sequence[Mapping[str, Any]], found: Sequence[float | None]
) -> View | None:
    """A map of sizes, coloured by their logarithm; None where not one size has any.

    `rows` have a `label`, a `column` and a `tensor`. Zeros, NaN and infinities stand as words in
    boxes without colour; None is an empty box.
    """
    held = [math.log10(v) for v in found if v is not None and 0 < v < math.inf]
    if not held:
        return None
    ends = (math.floor(min(held)), math.ceil(max(held)))
    ends = ends if ends[0] < ends[1] else (ends[0], ends[0] + 1)
    stride = max(1, math.ceil((ends[1] - ends[0]) / 5))
    shade = Shade(
        metric, of="log(datum.value) / LN10",
        ends=ends, marks=list(range(ends[0], ends[1] + 1, stride)),
        spell="format(pow(10, datum.value), '~e')", text="format(datum.value, '.1e')",
    )  # fmt: skip
    columns, labels = (list(dict.fromkeys(str(r[k]) for r in rows)) for k in ("column", "label"))
    tips = {"tensor": "tensor", "column": "arm", "value": metric}
    spec = heat_map("", shade, panels=[""], rows=labels, columns=columns, tips=tips)
    values = [[_told(v)] for v in found]
    return View(label, spec, ("value",), values, _caption(label, rows, found))


def _told(value: float | None) -> float | str | None:
    """A size as it stands in its box: a number, or the word for what has no colour."""
    if value is None or (math.isfinite(value) and value):
        return None if value is None else float(f"{value:.3g}")
    return f"{value:g}"


def _caption(label: str, rows: Sequence[Mapping[str, Any]], found: Sequence[float | None]) -> str:
    arms: dict[str, list[tuple[float, str]]] = {}
    for row, value in zip(rows, found, strict=True):
        if value is not None:
            arms.setdefault(str(row["column"]), []).append((value, str(row["label"])))
    told: list[str] = []
    lost: list[str] = []
    for arm, held in arms.items():
        drawn = [h for h in held if 0 < h[0] < math.inf]
        wrong = sum(not math.isfinite(v) for v, _ in held)
        if drawn:
            (low, least), (high, most) = min(drawn), max(drawn)
            told.append(f"{arm} from {show(low)} ({least}) to {show(high)} ({most})")
        elif not wrong:
            told.append(f"{arm} exactly 0 everywhere")
        lost += [f"{wrong} tensors of {arm}"] * bool(wrong)
    words = [f"{label}, by tensor: {'; '.join(told)}."]
    words += [f"NaN or infinite: {', '.join(lost)}."] * bool(lost)
    return " ".join(words)


def _tensors(trained: Trained) -> list[str]:
    """The tensors of the model, in its order."""
    logs = (log for line in trained.lines for log in line["tensors"].values())
    return list(dict.fromkeys(name for log in logs for at in log for name in at["of"]))


def _kept(
    trained: Trained, tensors: Sequence[str], step: int
) -> tuple[list[str], int]:  # fmt: skip
    """Those tensors that a map has room for, the ones that moved most; how many are left out."""
    if len(tensors) <= MOST_TENSORS:
        return list(tensors), 0
    held = _values(trained, step, METRICS[0])
    most = {
        t: max((v if math.isfinite(v) else math.inf
                for arm in trained.arms for v in held.get((t, arm), [])), default=0.0)
        for t in tensors
    }  # fmt: skip
    chosen = set(sorted(tensors, key=lambda t: -most[t])[:MOST_TENSORS])
    return [t for t in tensors if t in chosen], len(tensors) - MOST_TENSORS


def _values(trained: Trained, step: int, metric: str) -> dict[tuple[str, str], list[float]]:
    """A metric after a step, by tensor and arm: one value a repeat."""
    held: dict[tuple[str, str], dict[int, float]] = {}
    for line in trained.lines:
        for arm, log in line["tensors"].items():
            for of in (at["of"] for at in log if at["step"] == step):
                for tensor, found in of.items():
                    by_repeat = held.setdefault((tensor, arm), {})
                    by_repeat[line["training"]["repeat"]] = float(found[metric])
    return {place: list(by_repeat.values()) for place, by_repeat in held.items()}


def _typical(values: Sequence[float]) -> float | None:
    return estimate(values, signed=False).estimate if values else None


def short_tensors(names: Sequence[str]) -> list[str]:
    """Names without what all begin with, and without `.weight`; each still one of its kind.

    Where one is too long, all lose the word that says what their first number counts.

    >>> short_tensors(["model.norm.weight", "model.head.weight", "model.head.bias"])
    ['norm', 'head', 'head.bias']
    """
    columns = zip(*(name.split(".")[:-1] for name in names), strict=False)
    start = len(list(takewhile(lambda parts: len(set(parts)) == 1, columns)))
    bare = [name.split(".")[start:] for name in names]
    bare = [parts[:-1] if parts[-1] == "weight" and parts[1:] else parts for parts in bare]
    whole = [".".join(parts) for parts in bare]
    counted = [".".join(_uncounted(parts)) for parts in bare]
    short = whole if max(map(len, whole), default=0) <= LONGEST else list(map(_cut, counted))
    for shorter in (short, whole):
        if len(set(shorter)) == len(shorter):
            return shorter
    return list(names)


def _uncounted(parts: Sequence[str]) -> list[str]:
    """`blocks.0.attn` without the word before its first number."""
    first = next((i for i, part in enumerate(parts) if part.isdecimal()), 0)
    return [part for i, part in enumerate(parts) if i != first - 1]


def _cut(name: str) -> str:
    """The end of a long name."""
    return name if len(name) <= LONGEST else "\u2026" + name[1 - LONGEST :]
