"""The tables of a report, as text: results, matches, timings, failures, environments, metrics."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, cast

from roundoff.metrics import METRICS
from roundoff.report.bias import bias_of
from roundoff.report.figure import Names, places, show, show_value
from roundoff.report.rows import Point, Sample, number, outputs_of, plain, points_of, varied_axes

__all__ = [
    "Table", "environment_table", "failure_table", "match_table", "metric_table", "result_table",
    "status_of", "table_of", "timing_table",
]  # fmt: skip

MOST_ROWS = 400
LONGEST = 400
"""Characters of a cell: a stored error can be a whole compiler's log."""


@dataclass(frozen=True, slots=True)
class Table:
    """Columns and rows of text; `numeric` columns stand right, `left_out` counts missing rows."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: Sequence[bool] = ()
    left_out: int = 0


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    held = list(rows)
    text = [[_cell(value) for value in row] for row in held[:MOST_ROWS]]
    numeric = [any(number(r[i]) is not None for r in held) for i in range(len(columns))]
    return Table(columns, text, numeric, max(0, len(held) - MOST_ROWS))


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return show(value)
    text = "" if value is None else str(value)
    return text if len(text) <= LONGEST else text[:LONGEST] + " ..."


def table_of(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Any rows with named values, such as the evidence of a claim."""
    columns = list(dict.fromkeys(k for row in rows for k in row))
    return _table(columns, ([plain(row.get(c)) for c in columns] for row in rows))


def result_table(samples: Sequence[Sample], names: Names) -> Table:
    """Every point: size, ratio, floor, bias; geometric means over seeds."""
    points = points_of(samples, with_baseline=True)
    if not points:
        return Table([], [])
    axes = varied_axes(points)
    output = outputs_of(samples)[0]
    columns = [
        "candidate", "baseline", *axes, f"{output} rel_l2", "rmse", "max_abs_err", "x baseline",
        "x floor", "gain", "z", "ulp_p99", "match", "seeds",
    ]  # fmt: skip
    return _table(columns, (_result(p, output, axes, names) for p in points))


def _result(point: Point, output: str, axes: Sequence[str], names: Names) -> list[object]:
    def value(metric: str) -> float | None:
        return point.estimate(output, metric).estimate if point.values(output, metric) else None

    rmse, floor = value("rmse"), _middle(point, "floor", output, "rmse")
    gain, z = bias_of(point, output)
    return [
        names[point.candidate], names[point.baseline],
        *(show_value(point.place.get(a)) for a in axes),
        value("rel_l2"), rmse, value("max_abs_err"), value("err_ratio"),
        rmse / floor if rmse is not None and floor else None,
        gain.estimate if gain.n else None, z if math.isfinite(z) else None, value("ulp_p99"),
        _middle(point, "evidence", output, "match"), len(point.samples),
    ]  # fmt: skip


def _middle(point: Point, part: str, output: str, metric: str) -> float | None:
    """The median over seeds of a metric of the floor or the evidence."""
    found = (number(getattr(s, part).get(output, {}).get(metric)) for s in point.samples)
    held = [v for v in found if v is not None]
    return median(held) if held else None


def match_table(samples: Sequence[Sample]) -> Table:
    """Recipes beside kernels of the same name: match, null and lift, the worst place last."""
    rows: list[list[object]] = []
    for point in points_of(samples, with_baseline=True):
        if point.candidate == point.baseline or _bare(point.candidate) != _bare(point.baseline):
            continue
        axes = varied_axes(samples)
        for output in point.samples[0].evidence:
            parts = [_middle(point, "evidence", output, m) for m in ("match", "null", "lift")]
            rows.append([point.candidate, point.baseline, output, places(point.place, axes),
                         *parts, len(point.samples)])  # fmt: skip
    rows.sort(key=lambda r: -cast("float", r[4] or 0.0))
    columns = ["candidate", "baseline", "output", "where", "match", "null", "lift", "seeds"]
    return _table(columns, rows)


def _bare(name: str) -> str:
    return name.partition(":")[2]


def timing_table(rows: Iterable[Mapping[str, Any]]) -> Table:
    """What timing cells measured."""
    held = [r for r in rows if r.get("status") == "ok" and r.get("timing")]
    pairs = ((k, v) for r in held for k, v in r["timing"].items())
    names = list(dict.fromkeys(k for k, v in pairs if number(v) is not None))
    return _table(
        ["candidate", "baseline", "cell", *names],
        ([*_who(r), *(number(r["timing"].get(n)) for n in names)] for r in held),
    )


def failure_table(rows: Iterable[Mapping[str, Any]]) -> Table:
    """Cells that failed or were skipped, together where the reason is the same."""
    counts: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        if row.get("status") != "ok":
            candidate, _, cell = _who(row)
            key = (status_of(row), candidate, str(row.get("error") or "no reason stored"))
            counts.setdefault(key, []).append(cell)
    lines = ([*key, len(cells), cells[0]] for key, cells in counts.items())
    return _table(["status", "candidate", "reason", "cells", "first cell"], lines)


def status_of(row: Mapping[str, Any]) -> str:
    """What came of a cell: ok, failed or skipped."""
    return str(row.get("status"))


def _who(row: Mapping[str, Any]) -> list[str]:
    """Candidate, baseline, and the rest of the cell in words; defaults of None are left out."""
    if isinstance(row.get("training"), dict):
        return _who_trained(row["training"])
    cell: dict[str, Any] = row["cell"] if isinstance(row.get("cell"), dict) else {}
    params: dict[str, Any] = cell["params"] if isinstance(cell.get("params"), dict) else {}
    place = {k: plain(v) for k, v in {**cell, **params}.items() if v is not None}
    shown = [k for k in ("format", "seed", "device", *params) if k in place]
    return [str(cell.get("candidate", "?")), str(cell.get("baseline", "")), places(place, shown)]


def _who_trained(training: Mapping[str, Any]) -> list[str]:
    """The same of a repeat of training."""
    place = {k: plain(training.get(k)) for k in ("workload", "format", "steps", "repeat")}
    candidates: Iterable[object] = training.get("candidates") or ()
    return [", ".join(map(str, candidates)), str(training.get("baseline") or ""),
            places(place, place)]  # fmt: skip


def environment_table(
    documents: Mapping[str, Mapping[str, Any]], counts: Mapping[str, int]
) -> Table:
    """One column an environment: what the numbers depend on besides their cells."""
    flat = {digest: dict(_leaves(document, "")) for digest, document in documents.items()}
    keys = list(dict.fromkeys(k for leaves in flat.values() for k in leaves))
    rows = [["cells", *(counts.get(d, 0) for d in flat)]]
    rows += [[k, *(leaves.get(k, "") for leaves in flat.values())] for k in keys]
    return Table(["", *flat], [[str(v) for v in row] for row in rows])


def _leaves(document: Mapping[str, Any], prefix: str) -> Iterable[tuple[str, str]]:
    for key, value in document.items():
        if isinstance(value, dict):
            yield from _leaves(cast("dict[str, Any]", value), f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)


def metric_table(samples: Sequence[Sample]) -> Table:
    """What each metric of the run means."""
    found = {m for s in samples for metrics in s.outputs.values() for m in metrics}
    rows = [
        [m.name, m.meaning, m.unit, {"zero": "nearer to zero"}.get(m.better or "", m.better or "")]
        for m in METRICS.values()
        if m.name in found
    ]
    return _table(["metric", "what it means", "unit", "better"], rows)
