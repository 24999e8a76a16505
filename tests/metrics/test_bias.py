"""Gain and sign bias find what the signed mean misses; clustered standard errors are honest."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from roundoff import metrics
from roundoff.errors import UsageError
from roundoff.metrics import cluster_sums, gain, mean_signed_err, sign_bias


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def truncated(x):
    """Float32 values cut off, towards zero, to bf16."""
    return (x.float().view(torch.int32) & -0x10000).view(torch.float32)


@settings(deadline=None)
@given(st.floats(-4, 4))
def test_gain_of_a_multiple(factor):
    g = normal(4, 16)
    found = gain(g, factor * g)
    assert found.value == pytest.approx(factor - 1, abs=1e-14)
    assert found.se == pytest.approx(0, abs=1e-14)


def test_truncation_shrinks_and_the_signed_mean_does_not_see_it():
    g = normal(64, 4096).float()
    x = truncated(g)
    assert -4e-3 < gain(g, x).value < -2e-3
    assert gain(g, x).z < -100
    assert sign_bias(g, x).z < -100
    assert abs(mean_signed_err(g, x).z) < 4
    rounded = g.to(torch.bfloat16)
    assert abs(gain(g, rounded).z) < 4
    assert abs(sign_bias(g, rounded).z) < 4


def test_signed_mean_sees_a_shift():
    g = normal(64, 1024)
    assert mean_signed_err(g, g + 0.01).value == pytest.approx(0.01)
    assert mean_signed_err(g, g + 0.01 + 0.1 * normal(64, 1024, seed=1)).z > 10


@pytest.mark.parametrize("name", ["gain", "sign_bias", "mean_signed_err"])
def test_standard_error_by_leaving_out_clusters(name):
    """The linearised error agrees with the jackknife, which knows nothing of the formula."""
    g = normal(200, 32)
    x = g * (1 + 0.1 * normal(200, 1, seed=1)) + 0.05 * normal(200, 1, seed=2)
    measure = getattr(metrics, name)
    left = torch.tensor(
        [measure(*(torch.cat([t[:c], t[c + 1 :]]) for t in (g, x))).value for c in range(200)]
    )
    jackknife = math.sqrt(199 / 200 * (left - left.mean()).square().sum().item())
    assert measure(g, x).se == pytest.approx(jackknife, rel=0.03)


def test_mean_has_the_textbook_error():
    g, x = normal(12, 50), normal(12, 50, seed=1)
    means = (x - g).mean(1).numpy()
    assert mean_signed_err(g, x).se == pytest.approx(stats.sem(means), rel=1e-12)


@pytest.mark.parametrize("name", ["gain", "sign_bias", "mean_signed_err"])
def test_coverage(name):
    """Of 2000 experiments, 95 % of the intervals hold the truth, 0; not so by elements."""
    random, held, held_by_elements, times = torch.Generator().manual_seed(1), 0, 0, 2000
    measure = getattr(metrics, name)
    for _ in range(times):
        g = torch.randn(24, 96, dtype=torch.float64, generator=random)
        shared = torch.randn(2, 24, 1, dtype=torch.float64, generator=random)
        noise = torch.randn(24, 96, dtype=torch.float64, generator=random)
        # Each cluster stretches, pushes outwards and shifts by amounts of its own.
        x = g + 0.1 * (shared[0] * (g + g.sign()) + shared[1]) + 0.1 * noise
        held += 0 in measure(g, x).interval()
        held_by_elements += 0 in measure(g, x, cluster_dims=2).interval()
    low, high = stats.binom.interval(0.9999, times, 0.95)
    assert low <= held <= high
    assert held_by_elements < 0.5 * times


def test_clusters_that_say_nothing_do_not_count():
    g, x = torch.zeros(3, 4), torch.zeros(3, 4)
    g[0], x[0] = 1.0, 1.5
    found = gain(g, x)
    assert (found.value, found.clusters) == (0.5, 1)
    assert math.isnan(found.se)
    assert found.interval().high == math.inf


def test_pooling_seeds():
    g, x = normal(6, 4, 10), normal(6, 4, 10, seed=1)
    seeds = [cluster_sums(a, b, cluster_dims=1) for a, b in zip(g, x, strict=True)]
    pooled = seeds[0].merge(*seeds[1:])
    whole = cluster_sums(g, x, cluster_dims=2)
    by_seed = cluster_sums(g, x, cluster_dims=1)
    assert pooled.clusters == whole.clusters == 24
    assert pooled.gain().value == pytest.approx(whole.gain().value)
    assert pooled.gain().se == pytest.approx(whole.gain().se)
    collapsed = seeds[0].collapse().merge(*(s.collapse() for s in seeds[1:]))
    assert collapsed.gain().se == pytest.approx(by_seed.gain().se)
    assert collapsed.rmse() == pytest.approx(metrics.rmse(g, x))


def test_z_and_interval():
    assert metrics.Estimate(0.0, 0.0, 4).z == 0
    assert metrics.Estimate(-1.0, 0.0, 4).z == -math.inf
    assert math.isnan(metrics.Estimate(1.0, math.nan, 1).z)
    interval = metrics.Estimate(1.0, 0.5, 5).interval(0.9)
    assert interval.high == pytest.approx(1 + 0.5 * stats.t.ppf(0.95, 4))
    assert interval.n == 5


@pytest.mark.parametrize("cluster_dims", [-1, 3])
def test_cluster_dims_outside(cluster_dims):
    with pytest.raises(UsageError, match=f"cluster_dims is {cluster_dims}"):
        gain(torch.ones(2, 2), torch.ones(2, 2), cluster_dims=cluster_dims)
