"""Rows of a run as a table for people: a line a candidate and point, size and bias together."""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from roundoff.operators import OPERATORS

__all__ = ["Row", "deviations", "point", "varied"]

COLUMNS = ["rmse>", "x base>", "x floor>", "gain ± se>", "ulp p99>", "match>"]
LEGEND = (
    "x base, x floor: rmse over the baseline's, and over golden's rounded once; "
    "gain: share by which the output is stretched (+) or shrunk (-), with its standard error; "
    "ulp p99: at golden's own size, so large where outputs are near 0; "
    "match: bits equal to the baseline's"
)
OTHER_RESULT = 0.5
"""A relative error that no rounding explains: the candidate computes something else."""
Row = Mapping[str, Any]


def deviations(rows: Sequence[Row]) -> tuple[list[str], list[tuple[str, ...]]]:
    """Columns and lines: medians over seeds, of the operator's first output, or of several.

    Gradients are outputs of their own, a line each under their candidate.

    `x base` is rmse over the baseline's, `x floor` over that of golden rounded once; `gain` is
    the mean over seeds, its error from their spread (of one seed: from its heads); `match` is
    the share of bits equal to the baseline's. NaN and infinity are shown as such.
    """
    names, labels = varied(rows), _labels({row["cell"]["candidate"] for row in rows})
    groups: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        by_candidate = groups.setdefault(point(row, names), {})
        by_candidate.setdefault(row["cell"]["candidate"], []).append(row)
    lines: list[tuple[str, ...]] = []
    for at, by_candidate in groups.items():
        lines += [(at, *[""] * len(COLUMNS))] if names else []
        for candidate, members in by_candidate.items():
            lines += _lines(labels[candidate], members)
    return ["candidate!", *COLUMNS], lines


def doubtful(rows: Sequence[Row]) -> list[str]:
    """A line for each candidate whose output is not finite, or another result than golden."""
    found: dict[str, float] = {}
    broken: dict[str, int] = {}
    for row in rows:
        name = row["cell"]["candidate"]
        for output in _shown(row):
            error = row["outputs"][output].get("rel_l2", 0.0)
            if error > OTHER_RESULT:
                found[name] = max(error, found.get(name, 0.0))
            if lost := row["outputs"][output].get("nonfinite_new", 0):
                broken[name] = broken.get(name, 0) + lost
    return [
        f"{name}: broken: {lost} elements are NaN or infinite where golden is finite"
        for name, lost in broken.items()
    ] + [
        f"{name}: relative error {error:.2g}: another result, not rounding; "
        "are --layout, the scale and the mask right?"
        for name, error in found.items()
    ]


def _labels(candidates: Iterable[str]) -> dict[str, str]:
    """The candidates as a table calls them: of a user's file the name, where that says which."""
    short = {name: re.sub(r"^kernel:.*/([^/]+\.py:)", r"kernel:\1", name) for name in candidates}
    taken = Counter(short.values())
    return {name: label if taken[label] == 1 else name for name, label in short.items()}


def _shown(row: Row) -> list[str]:
    """The outputs that a table shows apart: all but fp32 statistics, which have no ulps here."""
    statistics = OPERATORS[row["cell"]["operator"]].statistics
    return [name for name in row["outputs"] if name not in statistics]


def _lines(candidate: str, members: Sequence[Row]) -> list[tuple[str, ...]]:
    shown = _shown(members[0])
    if len(shown) == 1:
        return [_line(f"  {candidate}", shown[0], members)]
    return [
        _line(f"  {candidate if n == 0 else ' ' * len(candidate)} {output}", output, members)
        for n, output in enumerate(shown)
    ]


def _line(label: str, output: str, members: Sequence[Row]) -> tuple[str, ...]:
    def values(part: str, metric: str) -> list[float | None]:
        return [m.get(part, {}).get(output, {}).get(metric) for m in members]

    rmse, floor = _middle(values("outputs", "rmse")), _middle(values("floor", "rmse"))
    gain = _pooled(values("outputs", "gain"), values("outputs", "gain_se"))
    return (
        label, f"{rmse:.2e}", f"{_middle(values('outputs', 'err_ratio')):.3g}",
        f"{rmse / floor if floor else math.nan:.3g}", gain,
        f"{_middle(values('outputs', 'ulp_p99')):.3g}",
        f"{100 * _middle(values('evidence', 'match')):.2f} %",
    )  # fmt: skip


def _middle(values: Iterable[float | None]) -> float:
    """The median; NaN if any value is, or if there is none."""
    found = [v for v in values if v is not None]
    if not found or any(math.isnan(v) for v in found):
        return math.nan
    return statistics.median(found)


def _pooled(gains: list[float | None], errors: list[float | None]) -> str:
    """The mean gain with its standard error: seeds are independent, so their spread tells it.

    One seed has no spread, and keeps its own error, over heads. NaN where either is infinite.
    """
    found = [g for g in gains if g is not None]
    if not found:
        return "-"
    if len(found) == 1:
        error = errors[0] if errors[0] is not None else math.nan
    elif all(map(math.isfinite, found)):
        error = statistics.stdev(found) / math.sqrt(len(found))
    else:
        error = math.nan
    return f"{statistics.fmean(found):+.1e} ±{error:.0e}"


def varied(rows: Sequence[Row]) -> list[str]:
    """The names of what differs between the rows' cells: format and parameters."""
    flat = [_flat(row) for row in rows]
    names = dict.fromkeys(name for cell in flat for name in cell)
    return [n for n in names if len({repr(cell.get(n)) for cell in flat}) > 1]


def point(row: Row, names: Sequence[str]) -> str:
    """A cell's values of `names` as one text; names without a value are left out."""
    cell = _flat(row)
    return ", ".join(f"{n} {cell[n]}" for n in names if cell.get(n) is not None) or "-"


def _flat(row: Row) -> dict[str, Any]:
    return {"format": row["cell"]["format"], **row["cell"]["params"]}
