"""From the lines of a run to points: what varies, and what each candidate gave over its seeds.

A *sample* is one measured cell. A *point* is what a candidate gave at one place of the
sweep, over its seeds. Which parameters there are is read from the cells.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, cast

from roundoff.metrics import METRICS
from roundoff.metrics.intervals import Interval, log_t_interval, t_interval
from roundoff.store.json import dumps

__all__ = [
    "CELL_AXES",
    "Point", "Sample", "estimate", "is_signed", "metrics_of", "number", "numeric_axes",
    "outputs_of", "plain", "points_of", "samples_of", "varied_axes",
]  # fmt: skip

Value = int | float | str | bool | None
Row = Mapping[str, Any]

CELL_AXES = ("operator", "format", "device", "threads")


@dataclass(frozen=True, slots=True)
class Sample:
    """One measured cell: who, where in the sweep, and the metrics of each output."""

    candidate: str
    baseline: str
    seed: Value
    place: Mapping[str, Value]
    outputs: Mapping[str, Row]
    evidence: Mapping[str, Row]
    floor: Mapping[str, Row]


@dataclass(frozen=True, slots=True)
class Point:
    """What one candidate gave at one place; `samples` has one entry a seed.

    `baseline` is empty where deviations from golden are meant, which need no baseline.
    """

    candidate: str
    baseline: str
    place: Mapping[str, Value]
    samples: Sequence[Sample]

    def values(self, output: str, metric: str) -> list[float]:
        """The metric of each seed that has it; NaN and infinities stay."""
        found = (number(s.outputs.get(output, {}).get(metric)) for s in self.samples)
        return [v for v in found if v is not None]

    def estimate(self, output: str, metric: str) -> Interval:
        """The metric over seeds, with its 95 % interval."""
        return estimate(self.values(output, metric), signed=is_signed(metric))


def samples_of(rows: Iterable[Row]) -> list[Sample]:
    """The measured deviations among the lines of a run; lines without any are left out."""
    return [
        _sample(row, cell)
        for row in rows
        if row.get("status") == "ok" and _mapping(row.get("outputs"))
        for cell in [_mapping(row.get("cell"))]
    ]


def _sample(row: Row, cell: Row) -> Sample:
    place = {name: plain(cell[name]) for name in CELL_AXES if name in cell}
    for name, value in _mapping(cell.get("params")).items():
        place[name if name not in place else f"params.{name}"] = plain(value)
    return Sample(
        candidate=str(cell.get("candidate", "?")),
        baseline=str(cell.get("baseline", "")),
        seed=plain(cell.get("seed")),
        place=place,
        outputs={k: _mapping(v) for k, v in _mapping(row.get("outputs")).items()},
        evidence={k: _mapping(v) for k, v in _mapping(row.get("evidence")).items()},
        floor={k: _mapping(v) for k, v in _mapping(row.get("floor")).items()},
    )


def _mapping(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def plain(value: object) -> Value:
    """A value that can be compared and shown: what is no scalar, or NaN, becomes text."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return dumps(value)


def number(value: object) -> float | None:
    """The value as a float, if it is a number."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def varied_axes(samples: Iterable[Sample | Point]) -> list[str]:
    """The names in which the places differ, in the order of first sight."""
    seen: dict[str, set[Value]] = {}
    held = list(samples)
    for sample in held:
        for name in sample.place:
            seen.setdefault(name, set())
    for sample in held:
        for name, values in seen.items():
            values.add(sample.place.get(name))
    return [name for name, values in seen.items() if len(values) > 1]


def numeric_axes(samples: Iterable[Sample]) -> dict[str, list[float]]:
    """The varied axes whose values are all numbers (or None), with the values in order."""
    held = list(samples)
    axes: dict[str, list[float]] = {}
    for name in varied_axes(held):
        values = {sample.place.get(name) for sample in held} - {None}
        numbers = [v for value in values if (v := number(value)) is not None]
        if len(numbers) == len(values):
            axes[name] = sorted(numbers)
    return axes


def points_of(samples: Iterable[Sample], *, with_baseline: bool = False) -> list[Point]:
    """Samples of one candidate and place together; of a seed measured twice, the last."""
    groups: dict[Hashable, dict[Value, Sample]] = {}
    for sample in samples:
        baseline = sample.baseline if with_baseline else ""
        key = (sample.candidate, baseline, tuple(sorted(sample.place.items(), key=_name)))
        groups.setdefault(key, {})[sample.seed] = sample
    points: list[Point] = []
    for by_seed in groups.values():
        held = list(by_seed.values())
        baseline = held[0].baseline if with_baseline else ""
        points.append(Point(held[0].candidate, baseline, held[0].place, held))
    return points


def _name(item: tuple[str, Value]) -> str:
    return item[0]


def outputs_of(samples: Iterable[Sample]) -> list[str]:
    """The names of the outputs, the operator's first one first."""
    return list(dict.fromkeys(name for sample in samples for name in sample.outputs))


def metrics_of(samples: Iterable[Sample], output: str, wanted: Sequence[str]) -> list[str]:
    """Which of the wanted metrics were measured; if none was, the first five that were."""
    found: dict[str, None] = {}
    for sample in samples:
        for name, value in sample.outputs.get(output, {}).items():
            if number(value) is not None:
                found[name] = None
    return [m for m in wanted if m in found] or list(found)[:5]


def is_signed(metric: str) -> bool:
    """Whether the metric has a sign, so that its axis cannot be logarithmic."""
    return metric in METRICS and METRICS[metric].better == "zero"


def estimate(values: Sequence[float], *, signed: bool) -> Interval:
    """The geometric mean over seeds with its interval; the mean for what has a sign.

    Where a zero leaves no geometric mean, the median without an interval.
    """
    interval = (t_interval if signed else log_t_interval)(values)
    if not signed and values and math.isnan(interval.estimate) and not _any_nan(values):
        return Interval(median(values), math.nan, math.nan, len(values))
    return interval


def _any_nan(values: Iterable[float]) -> bool:
    return any(map(math.isnan, values))
