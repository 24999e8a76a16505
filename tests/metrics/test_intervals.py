"""Student's t against scipy; intervals against closed forms and simulation."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from roundoff.errors import UsageError
from roundoff.metrics import (
    Interval,
    log_t_interval,
    ratio_interval,
    slope_interval,
    t_interval,
    t_quantile,
)
from roundoff.metrics.student_t import t_tail

nan, inf = math.nan, math.inf
DFS = [0.5, 1, 2, 3, 4, 7, 30, 99, 100, 101, 1000, 4095, 1e6]


@pytest.mark.parametrize("df", DFS)
@pytest.mark.parametrize("p", [0.001, 0.05, 0.3, 0.5, 0.6, 0.75, 0.95, 0.975, 0.995, 0.9999])
def test_quantile_is_scipys(p, df):
    assert t_quantile(p, df) == pytest.approx(stats.t.ppf(p, df), rel=1e-10, abs=1e-12)


@pytest.mark.parametrize("df", DFS)
@settings(deadline=None)
@given(t=st.floats(-50, 50))
def test_tail_is_scipys(df, t):
    assert t_tail(t, df) == pytest.approx(stats.t.sf(t, df), rel=1e-8, abs=1e-15)


def test_limits_of_the_quantile():
    assert t_quantile(0.5, 3) == 0
    assert t_quantile(1, 3) == inf
    assert t_quantile(0, 3) == -inf
    assert t_quantile(0.975, inf) == pytest.approx(stats.norm.ppf(0.975), rel=1e-12)
    assert t_tail(inf, 3) == 0
    assert math.isnan(t_tail(nan, 3))


@pytest.mark.parametrize(("p", "df"), [(-0.1, 3), (1.1, 3), (nan, 3), (0.9, 0), (0.9, nan)])
def test_quantile_refuses(p, df):
    with pytest.raises(UsageError, match="expected a number"):
        t_quantile(p, df)


def test_t_interval_is_scipys():
    held = [1.0, 2.5, 2.0, 4.0]
    expected = stats.t.interval(0.9, 3, np.mean(held), stats.sem(held))
    found = t_interval(held, 0.9)
    assert (found.low, found.high) == pytest.approx(expected)


def same(found, *expected):
    got = (found.estimate, found.low, found.high, found.n)
    assert got == pytest.approx(expected, nan_ok=True)


def test_special_values():
    same(t_interval([]), nan, nan, nan, 0)
    same(t_interval([2.0]), 2.0, -inf, inf, 1)
    same(t_interval([2.0, nan]), nan, nan, nan, 2)
    same(t_interval([2.0, inf]), inf, -inf, inf, 2)
    assert t_interval([0.1] * 3) == Interval(0.1, 0.1, 0.1, 3)
    same(log_t_interval([]), nan, nan, nan, 0)
    same(log_t_interval([2.0]), 2.0, 0.0, inf, 1)
    same(log_t_interval([2.0, nan]), nan, nan, nan, 2)
    same(log_t_interval([2.0, 0.0]), nan, nan, nan, 2)
    same(log_t_interval([2.0, -1.0]), nan, nan, nan, 2)
    same(log_t_interval([2.0, inf]), inf, 0.0, inf, 2)
    assert log_t_interval([0.3] * 3) == Interval(0.3, 0.3, 0.3, 3)
    same(ratio_interval([1.0], [2.0]), 0.5, 0.0, inf, 1)
    same(ratio_interval([0.0, 1.0], [0.0, 1.0]), nan, nan, nan, 2)
    same(slope_interval([1, 2], [[1.0, 4.0]]), 2.0, -inf, inf, 1)
    same(slope_interval([1, 2], [[1.0, 0.0], [1.0, 2.0]]), nan, nan, nan, 2)
    assert 1.0 not in t_interval([nan])


def test_wide_intervals_do_not_overflow():
    found = log_t_interval([1e-300, 1e300])
    assert (found.low, found.high) == (0.0, inf)


@pytest.mark.parametrize("seeds", [3, 8])
@pytest.mark.parametrize("of", [log_t_interval, lambda v: ratio_interval(v, [1.0] * len(v))])
def test_log_coverage(seeds, of):
    random, times = np.random.default_rng(seeds), 2000
    held = sum(2.0 in of(list(random.lognormal(np.log(2), 0.5, seeds))) for _ in range(times))
    low, high = stats.binom.interval(0.9999, times, 0.95)
    assert low <= held <= high


def test_pairing_removes_what_the_seed_shares():
    random = np.random.default_rng(0)
    shared = random.lognormal(0, 2, 8)
    a, b = (shared * factor * random.lognormal(0, 0.01, 8) for factor in (3.0, 1.0))
    found = ratio_interval(list(a), list(b))
    assert found.estimate == pytest.approx(3.0, rel=0.02)
    assert found.high / found.low < 1.05
    alone = log_t_interval(list(a))
    assert alone.high / alone.low > 5


@settings(deadline=None)
@given(st.floats(-3, 3), st.floats(0.01, 100))
def test_slope_of_a_power(power, factor):
    x = [512, 1024, 2048, 8192]
    found = slope_interval(x, [[factor * s * v**power for v in x] for s in (1, 2, 3)])
    assert found.estimate == pytest.approx(power, abs=1e-9)
    assert found.high - found.low < 1e-9


def test_slope_coverage():
    """Each seed has a slope of its own; points of one seed err together."""
    random, times, x = np.random.default_rng(5), 2000, np.array([1.0, 2.0, 4.0, 8.0])
    held = 0
    for _ in range(times):
        slopes = random.normal(0.5, 0.2, (5, 1))
        noise = random.normal(0, 0.3, (5, 1)) + random.normal(0, 0.1, (5, 4))
        held += 0.5 in slope_interval(list(x), (np.exp(noise) * x**slopes).tolist())
    low, high = stats.binom.interval(0.9999, times, 0.95)
    assert low <= held <= high


def test_slope_is_least_squares():
    x, y = [1.0, 2.0, 5.0], [2.0, 3.0, 11.0]
    expected = stats.linregress(np.log(x), np.log(y)).slope
    assert slope_interval(x, [y, y]).estimate == pytest.approx(expected)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: t_interval([1.0], 1.0), "confidence is 1.0"),
        (lambda: ratio_interval([1.0], []), "1 numerators and 0 denominators"),
        (lambda: slope_interval([2, 2], [[1.0, 2.0]]), "two different x"),
        (lambda: slope_interval([1, 2], [[1.0]]), "every seed needs 2 values"),
    ],
)
def test_refusals(call, says):
    with pytest.raises(UsageError, match=says):
        call()
