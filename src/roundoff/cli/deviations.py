"""Rows of a run as a table for people: a line a candidate and point, size and bias together."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["COLUMNS", "deviations", "varied"]

COLUMNS = [
    "candidate!", "cell", "rmse>", "x base>", "x floor>", "gain ± se!>", "ulp p99>", "match>",
]  # fmt: skip
Row = Mapping[str, Any]


def deviations(rows: Sequence[Row]) -> tuple[list[str], list[tuple[str, ...]]]:
    """Columns and lines: medians over seeds, of the operator's first output.

    `x base` is rmse over the baseline's, `x floor` over that of golden rounded once; `gain` is
    pooled over seeds, its error taken over heads and seeds; `match` is the share of bits equal to
    the baseline's. NaN and infinity are shown as such.
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["cell"]["candidate"], varied(row, rows)), []).append(row)
    return COLUMNS, [_line(candidate, point, g) for (candidate, point), g in groups.items()]


def _line(candidate: str, point: str, members: Sequence[Row]) -> tuple[str, ...]:
    first = next(iter(members[0]["outputs"]))

    def values(part: str, metric: str) -> list[float | None]:
        return [m.get(part, {}).get(first, {}).get(metric) for m in members]

    rmse, floor = _middle(values("outputs", "rmse")), _middle(values("floor", "rmse"))
    gain = _pooled(values("outputs", "gain"), values("outputs", "gain_se"))
    return (
        candidate, point, f"{rmse:.3g}", f"{_middle(values('outputs', 'err_ratio')):.3g}",
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
    """The mean gain with its standard error, from the seeds' own errors over heads."""
    found = [g for g in gains if g is not None]
    if not found:
        return "-"
    variance = sum((e if e is not None else math.nan) ** 2 for e in errors) / len(found) ** 2
    return f"{statistics.fmean(found):+.1e} ±{math.sqrt(variance):.0e}"


def varied(row: Row, rows: Sequence[Row]) -> str:
    """The parameters in which the rows differ, as this row has them; `-` if in none."""
    mine = _flat(row)
    names = [n for n in mine if len({repr(_flat(r).get(n)) for r in rows}) > 1]
    return " ".join(f"{n}={mine[n]}" for n in names if mine[n] is not None) or "-"


def _flat(row: Row) -> dict[str, Any]:
    return {"format": row["cell"]["format"], **row["cell"]["params"]}
