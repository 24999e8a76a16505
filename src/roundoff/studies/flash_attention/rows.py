"""Picking rows, and ratios and slopes over seeds with intervals (t on logarithms)."""

from __future__ import annotations

from roundoff.metrics import Interval, ratio_interval, slope_interval
from roundoff.studies.study import Frame

__all__ = ["METRICS", "paired_ratio", "pick", "seeds_of", "slope", "spell"]

METRICS = {"max_abs_err": "max error", "rmse": "rmse"}


def pick(rows: Frame, candidate: str, **where: object) -> Frame:
    """The accuracy rows of `candidate` at the given columns; columns not named are free."""
    chosen = (rows["candidate"] == candidate) & (rows["kind"] == "accuracy")
    for column, value in where.items():
        chosen &= rows[column].isna() if value is None else rows[column] == value
    return rows[chosen]


def seeds_of(rows: Frame, metric: str) -> Frame:
    """`out_<metric>` by seed; one row a seed, or a ValueError."""
    by_seed = rows.drop_duplicates(["seed", "candidate", "baseline"]).set_index("seed")
    if by_seed.empty or by_seed.index.has_duplicates:
        raise ValueError(f"expected one row a seed, found {len(by_seed)}")
    return by_seed[f"out_{metric}"].astype(float).sort_index()


def paired_ratio(candidate: Frame, baseline: Frame, metric: str) -> Interval:
    """Candidate over baseline, seed by seed on the same inputs."""
    a, b = seeds_of(candidate, metric), seeds_of(baseline, metric)
    both = a.index.intersection(b.index)
    return ratio_interval(a[both].tolist(), b[both].tolist())


def slope(rows: Frame, axis: str, metric: str) -> Interval:
    """d log(metric) / d log(axis), fitted for each seed; the interval is over seeds."""
    table = rows.pivot(index="seed", columns=axis, values=f"out_{metric}")
    return slope_interval([float(x) for x in table.columns], table.to_numpy().tolist())


def spell(interval: Interval, unit: str = "x") -> str:
    """An interval for people: `9.1x [7.9, 10.4]`."""
    return f"{interval.estimate:.3g}{unit} [{interval.low:.3g}, {interval.high:.3g}]"
