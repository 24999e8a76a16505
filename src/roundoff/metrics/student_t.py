"""Student's t distribution, so that an interval needs no library beyond the standard one.

The tail is a regularised incomplete beta function, by its continued fraction; the quantile
inverts it by bisection. Both are right to about 1e-11 up to a million degrees of freedom.
"""

from __future__ import annotations

import functools
import math

from roundoff.errors import UsageError

__all__ = ["t_quantile", "t_tail"]

TINY = 1e-300  # stands for a zero by which Lentz's method would divide


def t_tail(t: float, df: float) -> float:
    """Return P(T > t) for Student's t with `df` degrees of freedom; NaN for a NaN t.

    >>> round(t_tail(1.0, 1), 12)
    0.25
    """
    _require_df(df)
    if math.isnan(t):
        return math.nan
    if t < 0:
        return 1.0 - t_tail(-t, df)
    if math.isinf(df):
        return math.erfc(t / math.sqrt(2)) / 2
    if math.isinf(t):
        return 0.0
    return _half_beta(df, t * t) / 2


@functools.lru_cache(maxsize=1024)
def t_quantile(probability: float, df: float) -> float:
    """Return the t that a Student variable does not exceed with `probability`.

    -inf for 0 and inf for 1; `df` may be infinite (the normal distribution).
    Errors: `UsageError` for a probability outside [0, 1] or df that is not above 0.

    >>> round(t_quantile(0.975, 4), 6)
    2.776445
    """
    _require_df(df)
    if not 0 <= probability <= 1:
        raise UsageError(f"probability is {probability}; expected a number from 0 to 1")
    if probability < 0.5:
        return -t_quantile(1 - probability, df)
    tail = 1 - probability
    if tail == 0:
        return math.inf
    low, high = 0.0, 1.0
    while t_tail(high, df) > tail:
        low, high = high, 2 * high
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if t_tail(middle, df) > tail else (low, middle)
    return high if probability > 0.5 else 0.0


def _require_df(df: float) -> None:
    if not df > 0:
        raise UsageError(f"degrees of freedom are {df}; expected a number above 0")


def _half_beta(df: float, square: float) -> float:
    """Return I_x(df/2, 1/2), the regularised incomplete beta, at x = df / (df + square)."""
    if square == 0:
        return 1.0
    a, x, rest = df / 2, df / (df + square), square / (df + square)
    log_x = math.log1p(-rest) if rest < 0.5 else math.log(x)
    front = math.exp(a * log_x) * math.sqrt(rest / math.pi) * _gamma_ratio(a)
    # The fraction converges fast on one side of the mean only; the other is its mirror image.
    if x < (a + 1) / (a + 2.5):
        return front * _fraction(a, 0.5, x) / a
    return 1.0 - front * _fraction(0.5, a, rest) / 0.5


def _gamma_ratio(a: float) -> float:
    """Return gamma(a + 1/2) / gamma(a)."""
    if a < 50:
        return math.exp(math.lgamma(a + 0.5) - math.lgamma(a))
    # The difference of two large logarithms loses digits; Stirling's series does not.
    return math.sqrt(a) * math.exp(-1 / (8 * a) + 1 / (192 * a**3) - 1 / (640 * a**5))


def _fraction(a: float, b: float, x: float) -> float:
    """Return the continued fraction of the incomplete beta (DLMF 8.17.22), by Lentz's method."""
    value, c, d = 1.0, 1.0, 0.0
    for i in range(1, 10_000):
        m = i // 2
        if i % 2:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d = 1 / ((1 + term * d) or TINY)
        c = (1 + term / c) or TINY
        value *= c * d
        if abs(c * d - 1) < 1e-16:
            break
    return 1 / value
