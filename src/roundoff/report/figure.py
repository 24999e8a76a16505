"""What a figure is, apart from how it is drawn: rows, views of them, names, axes, words."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from roundoff.metrics import METRICS
from roundoff.metrics.intervals import Interval
from roundoff.report.rows import Value, number

__all__ = [
    "Figure", "Names", "Scale", "Spec", "View", "linear_scale", "log_scale", "metric_title",
    "order", "places", "show", "show_interval", "show_value", "symlog_scale",
]  # fmt: skip

Spec = dict[str, Any]
Cells = Sequence[Sequence[float | str | None]]


@dataclass(frozen=True, slots=True)
class View:
    """One way to look at a figure's rows: a Vega-Lite spec without data, and its numbers.

    `values` has one entry for each row of the figure, with one value for each of `columns`: a
    number, None, or a word for what cannot be drawn ("nan"), which the table shows.
    """

    label: str
    spec: Spec
    columns: Sequence[str]
    values: Cells
    caption: str


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure: rows of a table, and the views that a reader can choose between.

    `rows` hold words and places; `shown` names the columns of the table under the figure.
    """

    id: str
    title: str
    rows: Sequence[Mapping[str, Any]]
    views: Sequence[View]
    shown: Mapping[str, str] = field(default_factory=dict[str, str])

    def spec(self, view: View) -> Spec:
        """A whole Vega-Lite spec, data included."""
        return view.spec | {"data": {"values": list(self.filled(view))}}

    def filled(self, view: View) -> Iterable[dict[str, Any]]:
        """The rows with the numbers of one view."""
        for row, values in zip(self.rows, view.values, strict=True):
            yield {**row, **dict(zip(view.columns, values, strict=True))}


class Names:
    """Short names for candidates, the most frequent first in all figures, so that colours stay.

    The kind is left away (`fa2` for `recipe:fa2`) unless a kernel and a recipe share the name.
    """

    def __init__(self, candidates: Iterable[str]) -> None:
        counts = Counter(candidates)
        self.candidates = [name for name, _ in counts.most_common()]
        shared = Counter(_bare(name) for name in self.candidates)
        self._short = {n: n if shared[_bare(n)] > 1 else _bare(n) for n in self.candidates}

    def __getitem__(self, candidate: str) -> str:
        return self._short.get(candidate) or _bare(candidate)

    def domain(self) -> list[str]:
        """All short names, in the order of their colours."""
        return list(self._short.values())

    def present(self, rows: Iterable[Mapping[str, Any]]) -> list[str]:
        """The short names that are among the rows, in the order of their colours."""
        found = {row.get("candidate") for row in rows}
        return [name for name in self.domain() if name in found]


def _bare(name: str) -> str:
    head, _, rest = name.partition(":")
    return rest if head in ("kernel", "recipe") and rest else name


@dataclass(frozen=True, slots=True)
class Scale:
    """An axis: what it says, how it is spaced, where it begins and ends, where it is marked."""

    title: str
    kind: Literal["log", "linear", "symlog"]
    domain: tuple[float, float]
    ticks: Sequence[float]
    constant: float = 1.0


def log_scale(title: str, values: Iterable[float], *, marks: Sequence[float] = ()) -> Scale:
    """A logarithmic axis over the positive values; marked at `marks` if those are few."""
    held = [v for v in values if 0 < v < math.inf] or [1.0]
    low, high = min(held), max(held)
    if marks and len(marks) <= 9:
        return Scale(title, "log", (low / 1.1, high * 1.1), list(marks))
    ends = (low / 1.15, high * 1.15)
    ticks = [s for s in _log_steps(*ends) if ends[0] <= s <= ends[1]]
    return Scale(title, "log", ends, ticks[:: max(1, math.ceil(len(ticks) / 8))])


def _log_steps(low: float, high: float) -> list[float]:
    """Round numbers around low and high: the fewer decades, the more in each."""
    first, last = math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1
    decades = math.log10(high / low)
    parts = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)
    if decades > 0.5:
        parts = (1, 2, 5) if decades <= 2.5 else (1,)
    return [float(f"{p}e{e}") for e in range(max(first, -320), min(last, 308) + 1) for p in parts]


def linear_scale(title: str, values: Iterable[float]) -> Scale:
    """A linear axis over the finite values, with room at both ends."""
    held = [v for v in values if math.isfinite(v)]
    low, high = min(held, default=0.0), max(held, default=1.0)
    room = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    return Scale(title, "linear", (low - room, high + room), ())


def symlog_scale(title: str, values: Iterable[float]) -> Scale:
    """An axis with zero in the middle and decades on both sides, three at most."""
    sizes = [abs(v) for v in values if v and math.isfinite(v)] or [1.0]
    top = math.ceil(math.log10(max(sizes)) - 1e-9)
    bottom = max(top - 3, math.floor(math.log10(min(sizes))), -307)
    side = [10.0**e for e in range(min(bottom, top - 1), top + 1)]
    ticks = [-v for v in reversed(side)] + [0.0] + side
    return Scale(title, "symlog", (-side[-1] * 1.2, side[-1] * 1.2), ticks, side[0] / 4)


def metric_title(output: str, metric: str) -> str:
    """A metric of an output as an axis says it: name and unit."""
    unit = METRICS[metric].unit if metric in METRICS else ""
    words = {"output": f"units of {output}", "": "no unit"}
    return f"{output} {metric} ({words.get(unit, unit)})"


def show(value: float) -> str:
    """A number for people, at most three digits: 0.0123, 1.2e-05, inf."""
    return f"{value:.3g}"


def show_interval(interval: Interval) -> str:
    """An estimate with its bounds, where it has any: 0.012 [0.01, 0.015]."""
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return show(interval.estimate)
    return f"{show(interval.estimate)} [{interval.low:.2g}, {interval.high:.2g}]"


def show_value(value: Value) -> str:
    """A parameter for people; None is "none", as the operator's default."""
    if value is None:
        return "none"
    as_number = number(value)
    return str(value) if as_number is None else f"{as_number:.12g}"


def places(place: Mapping[str, Value], axes: Iterable[str]) -> str:
    """The named axes of a place in words: `inputs normal, tile 16`."""
    return ", ".join(f"{name} {show_value(place[name])}" for name in axes if name in place)


def order(values: Iterable[Value]) -> list[Value]:
    """Values without repeats: numbers by size, then words by first sight, None last."""
    held = list(dict.fromkeys(values))

    def rank(item: tuple[int, Value]) -> tuple[int, float]:
        size = number(item[1])
        if item[1] is None:
            return (2, 0.0)
        return (1, float(item[0])) if size is None else (0, size)

    return [value for _, value in sorted(enumerate(held), key=rank)]
