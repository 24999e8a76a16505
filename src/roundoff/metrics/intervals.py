"""Intervals for what was measured a few times: means, geometric means, ratios and slopes.

Seeds are the independent units. One measurement gives an infinite interval, since it says
nothing about its own spread; errors and their ratios are positive, so logarithms are averaged.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from roundoff.errors import UsageError
from roundoff.metrics.student_t import t_quantile

__all__ = ["Interval", "log_t_interval", "ratio_interval", "slope_interval", "t_interval"]


@dataclass(frozen=True)
class Interval:
    """An estimate between two bounds, from `n` independent values.

    NaN bounds hold nothing: `x in interval` is then False for every x.

    >>> 2.0 in Interval(estimate=1.5, low=1.0, high=2.0, n=4)
    True
    """

    estimate: float
    low: float
    high: float
    n: int

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


def t_interval(values: Iterable[float], confidence: float = 0.95) -> Interval:
    """Return the mean with Student's t interval.

    No values, or any NaN: all NaN. One value: from -inf to inf. An infinite value: its mean,
    and bounds from -inf to inf. Equal values: an interval of width 0.
    Errors: `UsageError` for a confidence outside (0, 1).

    >>> i = t_interval([1.0, 2.0, 3.0])
    >>> round(i.low, 3), i.estimate, round(i.high, 3)
    (-0.484, 2.0, 4.484)
    """
    if not 0 < confidence < 1:
        raise UsageError(f"confidence is {confidence}; expected a number between 0 and 1")
    held = [float(v) for v in values]
    n = len(held)
    if not n or any(math.isnan(v) for v in held):
        return Interval(math.nan, math.nan, math.nan, n)
    if min(held) == max(held) and n > 1 and math.isfinite(held[0]):
        return Interval(held[0], held[0], held[0], n)
    if n == 1 or not all(map(math.isfinite, held)):
        return Interval(sum(held) / n, -math.inf, math.inf, n)
    mean = math.fsum(held) / n
    variance = math.fsum((v - mean) ** 2 for v in held) / (n - 1)
    reach = t_quantile((1 + confidence) / 2, n - 1) * math.sqrt(variance / n)
    return Interval(mean, mean - reach, mean + reach, n)


def log_t_interval(values: Iterable[float], confidence: float = 0.95) -> Interval:
    """Return the geometric mean with Student's t interval on the logarithms.

    For what is positive and varies by factors: errors, and ratios of errors. Any value that
    is NaN, zero or negative makes all NaN, since it has no logarithm. One value: from 0 to inf.

    >>> i = log_t_interval([1.0, 2.0, 4.0])
    >>> round(i.low, 3), round(i.estimate, 3), round(i.high, 3)
    (0.357, 2.0, 11.19)
    """
    held = [float(v) for v in values]
    if len(held) > 1 and len(set(held)) == 1 and 0 < held[0] < math.inf:
        return Interval(held[0], held[0], held[0], len(held))
    return _exp(t_interval(map(_log, held), confidence))


def ratio_interval(
    numerators: Sequence[float], denominators: Sequence[float], confidence: float = 0.95
) -> Interval:
    """Return the typical ratio numerators[i] / denominators[i], as `log_t_interval` does.

    The pairs share a seed, so that what both have in common cancels before the spread is taken.
    Errors: `UsageError` if the lengths differ.

    >>> i = ratio_interval([2.0, 40.0], [1.0, 20.0])
    >>> round(i.low, 9), round(i.estimate, 9), round(i.high, 9)
    (2.0, 2.0, 2.0)
    """
    if len(numerators) != len(denominators):
        raise UsageError(
            f"{len(numerators)} numerators and {len(denominators)} denominators; expected pairs"
        )
    logs = (_log(a) - _log(b) for a, b in zip(numerators, denominators, strict=True))
    return _exp(t_interval(logs, confidence))


def slope_interval(
    x: Sequence[float], y: Sequence[Sequence[float]], confidence: float = 0.95
) -> Interval:
    """Return the slope of log y against log x: y grows as x to this power.

    `y[s][i]` is what seed s measured at x[i]. A line is fitted to each seed, and the interval
    is Student's over the slopes: points of one seed are not independent, seeds are. One seed:
    from -inf to inf. Any value without a logarithm makes all NaN.
    Errors: `UsageError` for fewer than two different x, or a row of another length.

    >>> round(slope_interval([512, 1024, 2048], [[1.0, 2.0, 4.0], [3.0, 6.0, 12.0]]).estimate, 9)
    1.0
    """
    if len(set(x)) < 2:
        raise UsageError(f"a slope needs two different x; got {list(x)}")
    if wrong := [len(row) for row in y if len(row) != len(x)]:
        raise UsageError(f"every seed needs {len(x)} values, one for each x; got {wrong[0]}")
    logs = [_log(v) for v in x]
    return t_interval([_slope(logs, [_log(v) for v in row]) for row in y], confidence)


def _slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the least-squares slope of y against x."""
    x_mean, y_mean = math.fsum(x) / len(x), sum(y) / len(y)
    across = math.fsum((a - x_mean) ** 2 for a in x)
    return sum((a - x_mean) * (b - y_mean) for a, b in zip(x, y, strict=True)) / across


def _log(value: float) -> float:
    """Return the logarithm; NaN where there is none, zero included."""
    return math.log(value) if value > 0 else math.nan


def _exp(interval: Interval) -> Interval:
    """Return an interval of logarithms as one of the values themselves."""
    low, high = _power(interval.low), _power(interval.high)
    return Interval(_power(interval.estimate), low, high, interval.n)


def _power(logarithm: float) -> float:
    try:
        return math.exp(logarithm)
    except OverflowError:
        return math.inf
