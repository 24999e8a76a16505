"""Picking rows, and ratios and slopes over seeds with intervals (t on logarithms).

Rows hold every planned cell; one that was not measured has NaN for its metrics, and so has
everything made of it. `complete` is what every predicate asks before it looks for extremes,
because a NaN would vanish from them.
"""

from __future__ import annotations

from collections.abc import Mapping

from roundoff.metrics import Interval, ratio_interval, slope_interval
from roundoff.studies.study import Frame, frame

__all__ = [
    "METRICS", "complete", "numbers", "paired_ratio", "pick", "ratios", "seeds_of", "short",
    "slopes", "spell",
]  # fmt: skip

METRICS = {"max_abs_err": "max error", "rmse": "rmse"}


def pick(rows: Frame, candidate: str, **where: object) -> Frame:
    """The accuracy rows of `candidate` at the given columns; columns not named are free."""
    chosen = (rows["candidate"] == candidate) & (rows["kind"] == "accuracy")
    for column, value in where.items():
        chosen &= rows[column].isna() if value is None else rows[column] == value
    return rows[chosen]


def seeds_of(rows: Frame, metric: str) -> Frame:
    """`out_<metric>` by seed; a ValueError unless there is one row a seed."""
    by_seed = rows.set_index("seed")
    if by_seed.empty or by_seed.index.has_duplicates:
        raise ValueError(f"expected one row a seed, found {len(by_seed)}")
    return by_seed[f"out_{metric}"].astype(float).sort_index()


def paired_ratio(candidate: Frame, baseline: Frame, metric: str) -> Interval:
    """Candidate over baseline, seed by seed on the same inputs."""
    a, b = seeds_of(candidate, metric), seeds_of(baseline, metric)
    if list(a.index) != list(b.index):
        raise ValueError(f"seeds {list(a.index)} against seeds {list(b.index)}")
    return ratio_interval(a.tolist(), b.tolist())


def ratios(rows: Frame, candidates: Mapping[str, str], baselines: Mapping[str, str]) -> Frame:
    """Candidate over baseline at each input, length, tile and metric, where both were planned."""
    lines: list[Mapping[str, object]] = []
    for (candidate, inputs, n, tile), mine in rows[rows["candidate"].isin(candidates)].groupby(
        ["candidate", "inputs", "seq_len", "tile"], dropna=False
    ):
        for base in baselines:
            against = pick(rows, base, inputs=inputs, seq_len=n, tile=None)
            for metric, name in METRICS.items():
                lines.append(
                    {"candidate": candidate, "baseline": base, "inputs": inputs, "seq_len": n,
                     "tile": tile, "metric": name}
                    | numbers(paired_ratio(mine, against, metric))
                )  # fmt: skip
    return frame(lines)


def slopes(rows: Frame, axis: str, groups: list[str]) -> Frame:
    """d log(error) / d log(axis) in each group, fitted for each seed; intervals over seeds."""
    lines: list[Mapping[str, object]] = []
    for key, part in rows.groupby(groups, dropna=False):
        for metric in ("max_abs_err", "rel_l2"):
            table = part.pivot(index="seed", columns=axis, values=f"out_{metric}")
            found = slope_interval([float(x) for x in table.columns], table.to_numpy().tolist())
            lines.append(
                dict(zip(groups, key, strict=True))
                | {"metric": metric, "slope": found.estimate, "low": found.low, "high": found.high}
            )
    return frame(lines)


def numbers(interval: Interval) -> dict[str, float]:
    """An interval as the columns ratio, low and high."""
    return {"ratio": interval.estimate, "low": interval.low, "high": interval.high}


def complete(table: Frame, *columns: str) -> Frame:
    """`table`, if no value of the columns is NaN; else a ValueError that counts them."""
    missing = int(table[list(columns)].isna().any(axis=1).sum())
    if missing or not len(table):
        raise ValueError(f"{missing} of {len(table)} values are NaN or were not measured")
    return table


def spell(row: Frame | Interval) -> str:
    """A ratio with its interval: `9.1x [7.9, 10.4]`; its ends where they differ visibly."""
    estimate = row.estimate if isinstance(row, Interval) else row["ratio"]
    low, high = (row.low, row.high) if isinstance(row, Interval) else (row["low"], row["high"])
    return f"{estimate:.2g}x [{low:.2g}, {high:.2g}]"


def short(candidate: object) -> str:
    """A subject's name without its kind."""
    return str(candidate).partition(":")[2]
